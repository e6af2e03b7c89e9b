"""Who may ask: requests that name this server's own hosts, from its own pages. Also the headers of every answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")
_SAFE_METHODS = ("GET", "HEAD")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    # One request a connection: a client that trickles the next one's head would otherwise hold it for ever.
    "Connection": "close",
}


@dataclass(frozen=True)
class Hosts:
    """The names under which this server may be asked.

    A page of another site can make its own name resolve to this machine (DNS rebinding) and would then be of the same
    origin as this server; the Host header still gives its name away.

    Attributes:
        names: in lower case, without a port; ".example.org" stands for every name below example.org.
        any_address: also every literal IP address, for a server that listens on all of them.
    """

    names: frozenset[str]
    any_address: bool = False

    @classmethod
    def serving(cls, host: str, also: Iterable[str] = ()) -> Hosts:
        """What a server bound to ``host`` answers to: that, this machine's own names, and ``also``."""
        names = {*LOOPBACK, host.lower().strip("[]"), *(name.lower() for name in also)}
        return cls(frozenset(names - set(WILDCARDS)), any_address=host in WILDCARDS)

    def admit(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = _host_of(header)
        if not name:
            return False
        if name in self.names or any(name.endswith(suffix) for suffix in self.names if suffix.startswith(".")):
            return True
        return self.any_address and _is_address(name)


class Guard:
    """Refuses requests for other hosts and from other sites' pages; adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, answer)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._hosts.admit(host):
            return JSONResponse(
                {"error": "this server does not answer to that host name; whycam serve --allow-host NAME adds one"}, 421
            )
        if method in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return JSONResponse({"error": "requests from other sites' pages are refused"}, 403)
        return None


def _host_of(header: str) -> str:
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # a port that is no number is refused too
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
