"""Which requests are answered: those for this server's own hosts, from its own pages. The headers of every answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whycam.errors import WhycamError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")
_SAFE_METHODS = ("GET", "HEAD")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    # One request per connection: otherwise a client could hold one open by sending the next head slowly.
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class AllowedHosts:
    """The host names this server answers to.

    A page of another site can make its own name resolve to this machine (DNS rebinding). Its requests then have the
    same origin as this server's own pages, but their Host header names the other site.

    Starlette's ``TrustedHostMiddleware`` cannot allow "every literal IP address", which a server that listens on all
    addresses needs.

    Attributes:
        names: in lower case, without a port; ".example.org" stands for every name below example.org.
        any_address: also every literal IP address, for a server that listens on all of them.
    """

    names: frozenset[str]
    any_address: bool = False

    @classmethod
    def of_server(cls, host: str, also: Iterable[str] = ()) -> AllowedHosts:
        """For a server bound to ``host``: that name, this machine's own names, and ``also``."""
        names = {*LOOPBACK, host.lower().strip("[]"), *(name.lower() for name in also)}
        return cls(frozenset(names - set(WILDCARDS)), any_address=host in WILDCARDS)

    def allows(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = _host_name(header)
        if not name:
            return False
        if name in self.names or any(name.endswith(suffix) for suffix in self.names if suffix.startswith(".")):
            return True
        return self.any_address and _is_address(name)


class RequestFilter:
    """Refuses requests for other hosts and from other sites' pages; adds security headers to every answer."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._hosts.allows(host):
            return JSONResponse(
                {"error": "this server does not answer to that host name; whycam serve --allow-host NAME adds one"}, 421
            )
        if method in _SAFE_METHODS:
            return None
        own = f"http://{host}"
        # A proxy in front of this server may speak https.
        foreign = headers.get("origin", own).lower() not in (own.lower(), f"https://{host}".lower())
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return JSONResponse({"error": "requests from other sites' pages are refused"}, 403)
        return None


def _host_name(header: str) -> str:
    """The name in a Host header, in lower case without port and brackets; empty if the header is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return ""
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return ""
    return (parts.hostname or "").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return ``origins`` if all of them may be written into a Content-Security-Policy.

    Raises:
        WhycamError: one is not of the form https://example.org.
    """
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or any(c in rest for c in "/;, '\"") or not origin.isascii():
            raise WhycamError(f"--allow-frame {origin}: give an origin such as https://example.org")
    return tuple(origins)
