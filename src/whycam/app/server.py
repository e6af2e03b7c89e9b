"""The process: listen, serve until told to stop, and then stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from whycam.app.desk import Desk
from whycam.app.limits import Limits
from whycam.app.routes import Site, application
from whycam.errors import WhycamError

DEFAULTS = Limits()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.

    Raises:
        WhycamError: the address is taken or none of this machine's, or there is no such port.
    """
    try:
        # Of such a port create_server says so as well, and leaves its socket open.
        if not 0 <= port <= 65535:
            raise OSError("a port is 0 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=DEFAULTS.connections)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WhycamError(f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port") from None


def serve(site: Site, listener: socket.socket, ready: Callable[[], None], limits: Limits = DEFAULTS) -> None:
    """Serve until SIGINT or SIGTERM; work in progress is given up, answers on their way are sent.

    Args:
        site: what.
        listener: where; closed at the end.
        ready: called once requests are answered.
        limits: what it takes on.
    """
    asyncio.run(_serve_until_told(site, listener, ready, limits))


async def _serve_until_told(site: Site, listener: socket.socket, ready: Callable[[], None], limits: Limits) -> None:
    desk = Desk(places=limits.places, seconds=limits.work_seconds)
    config = uvicorn.Config(
        application(site, desk, limits),
        http=type("_BoundConnection", (_Connection,), {"head_seconds": limits.head_seconds}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=limits.grace_seconds,
        h11_max_incomplete_event_size=32 * 2**10,
    )
    server = _Server(config, desk)
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await running


class _Server(uvicorn.Server):
    """Stops on a signal without raising it again: being told to stop is no failure."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The signal may have come while the loop holds a lock of the desk's: the desk is closed by the loop itself.
        self._loop.call_soon_threadsafe(self._desk.close)
        super().handle_exit(sig, frame)


class _Connection(H11Protocol):
    """Closes a connection on which no whole request head arrives in time."""

    head_seconds = DEFAULTS.head_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.head_seconds, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if getattr(self, "cycle", None) is None and not self.transport.is_closing():
            self.transport.close()


def addresses(listener: socket.socket, host: str) -> str:
    """The address to open, as a browser wants it."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def allowed_frames(origins: Sequence[str]) -> tuple[str, ...]:
    """Check origins that are to go into a policy.

    Raises:
        WhycamError: one is not of the form https://example.org.
    """
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or any(c in rest for c in "/;, '\"") or not origin.isascii():
            raise WhycamError(f"--allow-frame {origin}: give an origin such as https://example.org")
    return tuple(origins)
