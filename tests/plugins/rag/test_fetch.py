"""Pages from the network: which are fetched, and which are refused."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.rag.fetch import _public, fetch
from pipeline_plugins.rag.sources import read, source_of
from pipeline_plugins.read.reader import Readers, Unreadable


class Site(BaseHTTPRequestHandler):
    """Pages to fetch."""

    def do_GET(self) -> None:
        status, kind, body, more = 200, "text/html; charset=utf-8", b"<h1>Hi</h1>", {}
        if self.path.startswith("/to/"):
            status, more = 302, {"location": self.path.removeprefix("/to/")}
        elif self.path == "/loop":
            status, more = 302, {"location": "/loop"}
        elif self.path == "/notes.md":
            kind, body = "text/plain", b"# Notes"
        elif self.path == "/odd":
            kind = "application/x-odd"
        elif self.path == "/short":
            more = {"content-length": "100"}
        elif self.path == "/gone":
            status = 404
        self.send_response(status)
        self.send_header("content-type", kind)
        for name, value in {"content-length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetched(url: str, *, limit: int = 1000, private: bool = True) -> bytes:
    into = io.BytesIO()
    fetch(url, into, limit=limit, private=private)
    return into.getvalue()


def test_a_page_is_fetched_by_way_of_redirects(site: str) -> None:
    assert fetched(f"{site}/to//page") == b"<h1>Hi</h1>"


@pytest.mark.parametrize(("path", "text"), [("/page", "# Hi"), ("/notes.md", "# Notes")])
def test_a_page_is_read_by_what_it_is(site: str, path: str, text: str) -> None:
    readers = Readers({})
    (file,) = source_of(f"{site}{path}", readers, 1000).files()
    (document,) = read(file, readers, private=True)
    assert (document.id, document.text) == (f"{site}{path}", text)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/gone", "status 404"),
        ("/loop", "more than 5 redirects"),
        ("/short", "broken off|can't be fetched"),
        ("/to/file:///etc/passwd", "only http"),
        ("/to/ftp://example.org/x", "only http"),
        ("/to/http://user:secret@example.org/", "user or a password"),
    ],
)
def test_what_is_no_whole_page_is_refused(site: str, path: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        fetched(f"{site}{path}")


def test_a_page_that_is_too_large_is_refused(site: str) -> None:
    with pytest.raises(Unreadable, match="larger than 5 bytes"):
        fetched(f"{site}/page", limit=5)


def test_a_page_of_an_unknown_type_is_not_read(site: str) -> None:
    readers = Readers({})
    (file,) = source_of(f"{site}/odd", readers, 1000).files()
    with pytest.raises(Unreadable, match="application/x-odd"):
        list(read(file, readers, private=True))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://0/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
        "http://[fe80::1%25lo]/",
    ],
)
def test_private_addresses_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(Unreadable, match=r"private network|can't be fetched"):
        fetched(url, private=False)


def test_a_page_of_this_machine_is_refused_before_it_is_asked_for(site: str) -> None:
    with pytest.raises(Unreadable, match="private_addresses"):
        fetched(f"{site}/page", private=False)


@given(st.ip_addresses(network="10.0.0.0/8"))
def test_an_address_is_private_also_within_another_one(address: object) -> None:
    assert not _public(str(address))
    assert not _public(f"::ffff:{address}")
    assert not _public(f"64:ff9b::{address}")


def test_addresses_of_the_open_network_are_public() -> None:
    assert _public("93.184.215.14")
    assert _public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
