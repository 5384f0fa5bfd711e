"""Who may look: the Host header, the token, and the headers every answer carries.

Pure ASGI around the site, so that nothing is answered before it: not an error, not a style sheet.

- Host. A name that a hostile page made to point here (DNS rebinding) is a name, so an address is
  always welcome, and of names only `localhost` and those that were allowed.
- Token. As `Authorization: Bearer`, or as a cookie that /login sets, that does not hold the token
  itself and that ends by the time signed into it, whatever the browser thinks; compared in constant
  time, written to no log and no address.
- Headers. The page loads its own style sheet and script and nothing else, sends forms to itself
  only, is framed by nobody and stored nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fullpass_dashboard"
COOKIE_SECONDS = 12 * 3600
_CLOCKS_DIFFER_SECONDS = 60
"""Between two dashboards of one token, or before and after a clock is set."""
_DIGITS = 12
_OPEN = frozenset({"/login", "/style.css"})
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cache-control", "no-store"),
)


@dataclass(frozen=True, slots=True)
class Access:
    """Under which names the site is asked for, and with which token, if any."""

    names: frozenset[str]
    token: str | None = field(repr=False)
    clock: Callable[[], float] = time.time
    """Seconds since the epoch: a login outlives the process that admitted it."""

    def welcomes(self, host: str) -> bool:
        """Whether a Host header names this site."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request shows the token, or none is asked for."""
        if self.token is None:
            return True
        shown = dict(headers)
        scheme, _, given = shown.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and self.is_token(given.strip()):
            return True
        try:
            cookies = SimpleCookie(shown.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return False
        return COOKIE in cookies and self._is_cookie(cookies[COOKIE].value)

    def is_token(self, given: bytes) -> bool:
        """Whether this is the token; takes as long for a near miss as for any other."""
        return self.token is not None and hmac.compare_digest(given, self.token.encode())

    def new_cookie(self) -> str:
        """Return what a cookie holds from now on: a browser that leaks it leaks no token."""
        return self._signed(int(self.clock()))

    def _is_cookie(self, given: str) -> bool:
        issued, _, _ = given.partition(".")
        if not (issued.isascii() and issued.isdigit() and len(issued) <= _DIGITS):
            return False
        at = int(issued)
        signed = hmac.compare_digest(given.encode(), self._signed(at).encode())
        return signed and -_CLOCKS_DIFFER_SECONDS <= self.clock() - at < COOKIE_SECONDS

    def _signed(self, issued: int) -> str:
        key = (self.token or "").encode()
        text = f"fullpass dashboard cookie {issued}"
        return f"{issued}.{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Guarded:
    """The site behind its guard."""

    site: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may be asked, refuse the rest."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] != "http":
            await self.site(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        answer: ASGIApp = self.site
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.access.welcomes(hosts[0].decode("latin-1")):
            told = "This name is not one of the dashboard's: --allow-host adds it.\n"
            answer = PlainTextResponse(told, status_code=421)
        elif scope["path"] not in _OPEN and not self.access.admits(scope["headers"]):
            wants_page = any(
                name == b"accept" and b"text/html" in value for name, value in scope["headers"]
            )
            answer = (
                RedirectResponse("/login", status_code=303)
                if wants_page
                else PlainTextResponse("Show the token as Authorization: Bearer.\n", 401)
            )
        await answer(scope, receive, sealed)
