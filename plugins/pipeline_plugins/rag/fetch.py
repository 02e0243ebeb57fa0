"""Pages from the network: http and https alone, bounded, and not from private networks.

A name is looked up once, its addresses are checked, and one of those is connected to: a name
that answers differently the second time gains nothing. Each redirect is checked anew.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import IO
from urllib.parse import SplitResult, urljoin, urlsplit

from pipeline_plugins.read.reader import Unreadable

REDIRECTS = 5
SECONDS = 30.0
"""Seconds for which a server may be silent."""

PIECE = 65_536
MOVED = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True, frozen=True)
class Page:
    """What was fetched: the address in the end, and the content type without its parameters."""

    url: str
    type: str


def is_url(text: str) -> bool:
    """Whether an argument is an address rather than a path."""
    return text.lower().startswith(("http://", "https://"))


def fetch(url: str, into: IO[bytes], *, limit: int, private: bool = False) -> Page:
    """Write a page's content into a file. Blocks.

    `limit` is in bytes. Raises `Unreadable` for what is refused, too large or not there.
    """
    for _ in range(REDIRECTS + 1):
        parts = _checked(url)
        connection = _Connection(parts, private)
        try:
            connection.request("GET", _target(parts), headers=HEADERS)
            answer = connection.getresponse()
            if answer.status in MOVED and (where := answer.headers.get("location")):
                url = urljoin(url, where)
                continue
            if answer.status != 200:
                raise Unreadable(f"answered with status {answer.status}")
            _copy(answer, into, limit)
            return Page(url, answer.headers.get_content_type())
        except (OSError, http.client.HTTPException) as error:
            raise Unreadable(f"can't be fetched: {error or type(error).__name__}") from None
        finally:
            connection.close()
    raise Unreadable(f"more than {REDIRECTS} redirects")


HEADERS = {"accept-encoding": "identity", "user-agent": "llm-pipeline", "connection": "close"}


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise Unreadable("no address that can be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreadable("only http and https addresses are fetched")
    if parts.username is not None or parts.password is not None:
        raise Unreadable("addresses with a user or a password are not fetched")
    return parts


def _target(parts: SplitResult) -> str:
    target = parts.path or "/"
    target = f"{target}?{parts.query}" if parts.query else target
    return target.encode("ascii", "ignore").decode() if not target.isascii() else target.replace(" ", "%20")


def _copy(answer: http.client.HTTPResponse, into: IO[bytes], limit: int) -> None:
    size = 0
    while piece := answer.read(PIECE):
        size += len(piece)
        if size > limit:
            raise Unreadable(f"larger than {limit} bytes")
        into.write(piece)
    if answer.length:
        raise Unreadable("broken off before its end")


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, not to a name that is looked up again."""

    def __init__(self, parts: SplitResult, private: bool) -> None:
        tls = parts.scheme == "https"
        super().__init__(parts.hostname or "", parts.port or (443 if tls else 80), timeout=SECONDS)
        self._tls = ssl.create_default_context() if tls else None
        self._private = private

    def connect(self) -> None:
        """Connect to the first address that answers. Raises OSError and `Unreadable`."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        if not self._private and not all(_public(str(address[0])) for *_, address in found):
            raise Unreadable(
                f"`{self.host}` is on this machine or in a private network: "
                "`rag.private_addresses=true` allows that"
            )
        failure: OSError | None = None
        for *_, address in found:
            try:
                self.sock = socket.create_connection((str(address[0]), self.port), self.timeout)
                break
            except OSError as error:
                failure = error
        else:
            raise failure or OSError("there is no address")
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


def _public(address: str) -> bool:
    """Whether an address is one of the open network, whatever it is wrapped in."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            found = inner
        elif found in NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global and not found.is_multicast


NAT64 = ipaddress.ip_network("64:ff9b::/96")
