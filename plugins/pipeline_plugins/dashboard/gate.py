"""Who may see the dashboard, and how an administrator logs in."""

from __future__ import annotations

from html import escape
from http.cookies import CookieError, SimpleCookie
from inspect import isawaitable
from typing import Any
from urllib.parse import parse_qs

from pipeline.errors import APIError, Forbidden, InvalidRequest, Unauthorized
from pipeline.graph import Graph
from pipeline.server.exchange import read_body
from pipeline.server.headers import Headers
from pipeline_plugins.dashboard.assets import GUARDED, Assets
from pipeline_plugins.dashboard.session import COOKIE, Attempts, Sessions

MAX_BODY = 4096
BODY_SECONDS = 10.0

NOTE = b"<!--note-->"
"""Where the page of the form says what was wrong."""

WRONG = "That is not the administrator's key."

TOO_MANY = "Too many wrong keys. Wait a minute, then try again."


class Gate:
    """Lets administrators in: by a session's cookie, or by their key in a header.

    While nothing asks clients for a key, which is so on loopback only, everyone is let in.
    """

    def __init__(self, graph: Graph, sessions: Sessions, attempts: Attempts, assets: Assets) -> None:
        hook = graph.plugins.hook.pipeline_authenticate
        self.open = not hook.get_hookimpls()
        self._authenticate = hook
        self._sessions = sessions
        self._attempts = attempts
        self._assets = assets

    async def admit(self, scope: Any) -> None:
        """Raises `Unauthorized` or `Forbidden` for who may not see what goes on."""
        headers = Headers(scope["headers"])
        _own_page(headers)
        if self.open or self.has_session(scope):
            return
        if "authorization" not in headers and "x-api-key" not in headers:
            raise Unauthorized("Log in at `/dashboard/login`, or send the administrator's key.")
        if headers.repeats("authorization"):
            raise Unauthorized("More than one key was sent.")
        if not await self._is_admin(headers):
            raise Forbidden("Only an administrator's key may do this.")

    def has_session(self, scope: Any) -> bool:
        """Whether a request carries the cookie of a session that goes on."""
        try:
            cookie = SimpleCookie(Headers(scope["headers"]).get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._sessions.good(cookie.value)

    async def login(self, scope: Any, receive: Any, send: Any) -> None:
        """The form, or what comes of it: a cookie, or the form again."""
        if self.open or self.has_session(scope):
            await redirect(send, b"../dashboard")
        elif scope["method"] == "POST":
            await self._log_in(scope, receive, send)
        else:
            await self._form(send, 200)

    async def logout(self, scope: Any, receive: Any, send: Any) -> None:
        """Take the cookie back."""
        _own_page(Headers(scope["headers"]))
        await redirect(send, b"login", (b"set-cookie", _cookie("", 0, scope)))

    async def _log_in(self, scope: Any, receive: Any, send: Any) -> None:
        _own_page(Headers(scope["headers"]))
        client = str((scope.get("client") or ("",))[0])
        wait = self._attempts.wait(client)
        if wait > 0:
            await self._form(send, 429, TOO_MANY, (b"retry-after", str(int(wait) + 1).encode()))
            return
        held = _key_of(await read_body(receive, MAX_BODY, BODY_SECONDS))
        self._attempts.begin(client)
        try:
            admin = bool(held) and await self._is_admin({"authorization": f"Bearer {held}"})
        except APIError as error:
            if error.status >= 500:
                await self._form(send, error.status, error.message)
                return
            admin = False
        if not admin:
            await self._form(send, 401, WRONG)
            return
        self._attempts.succeeded(client)
        cookie = _cookie(self._sessions.begin(), int(self._sessions.seconds), scope)
        await redirect(send, b"../dashboard", (b"set-cookie", cookie))

    async def _is_admin(self, headers: Any) -> bool:
        found = self._authenticate(headers=headers)
        if isawaitable(found):
            found = await found
        return found is not None and bool(found.admin)

    async def _form(self, send: Any, status: int, note: str = "", *headers: tuple[bytes, bytes]) -> None:
        body = self._assets.find("login.html").body.replace(NOTE, escape(note).encode())
        head = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *GUARDED,
            *headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})


async def redirect(send: Any, to: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a browser elsewhere, by a GET. `to` is relative: a proxy may serve this below a path."""
    head = [(b"location", to), (b"content-length", b"0"), (b"cache-control", b"no-store"), *GUARDED, *headers]
    await send({"type": "http.response.start", "status": 303, "headers": head})
    await send({"type": "http.response.body", "body": b""})


def _key_of(form: bytes) -> str:
    """The key in a form as browsers send it."""
    try:
        return parse_qs(form.decode("latin-1"), max_num_fields=4).get("key", [""])[0].strip()
    except ValueError as error:
        raise InvalidRequest(f"The form can't be read: {error}.") from None


def _own_page(headers: Headers) -> None:
    """Refuse what another site's page makes a browser send."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is not None:  # a browser too old to say more
        site = "same-origin" if origin.partition("://")[2] == headers.get("host") else "cross-site"
    if site not in (None, "none", "same-origin"):
        raise Forbidden("Pages of other sites may not do this.", code="cross_site")


def _cookie(value: str, seconds: int, scope: Any) -> bytes:
    """Without a path: browsers take the folder of the form, also where a proxy serves it elsewhere."""
    secure = Headers(scope["headers"]).get("origin", "").startswith("https://")
    kept = f"{COOKIE}={value}; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    return (kept + ("; Secure" if secure else "")).encode()
