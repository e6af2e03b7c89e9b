"""The server process: it listens, serves until it is told to stop, and shuts down."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from whycam.app.limits import Limits
from whycam.app.routes import Site, create_app
from whycam.app.work_queue import WorkQueue
from whycam.errors import WhycamError

DEFAULTS = Limits()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.

    Raises:
        WhycamError: the address is taken or not one of this machine's, or the port does not exist.
    """
    try:
        # create_server raises for such a port as well, but leaves its socket open.
        if not 0 <= port <= 65535:
            raise OSError("a port is 0 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=DEFAULTS.connections)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WhycamError(f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port") from None


def serve(site: Site, listener: socket.socket, ready: Callable[[], None], limits: Limits = DEFAULTS) -> None:
    """Serve until SIGINT or SIGTERM. Then running work is stopped, and answers on their way are still sent.

    Args:
        site: what to serve.
        listener: where to serve it; closed at the end.
        ready: called once requests are answered.
        limits: bounds on memory, time and connections.
    """
    queue = WorkQueue(limits)
    config = uvicorn.Config(
        create_app(site, queue, limits),
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.head_seconds,
        timeout_graceful_shutdown=limits.grace_seconds,
        h11_max_incomplete_event_size=32 * 2**10,
    )
    asyncio.run(_Server(config, queue, ready).serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """Says when it is ready, stops the queue's work first, and counts being told to stop as success."""

    def __init__(self, config: uvicorn.Config, queue: WorkQueue, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._queue = queue
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            # Uvicorn would raise them again, and the process would end with a failure.
            self._captured_signals.clear()


class _Connection(H11Protocol):
    """Closes a connection that does not send a request head in time; Uvicorn itself limits only later requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if getattr(self, "cycle", None) is None and not self.transport.is_closing():
            self.transport.close()


def server_url(listener: socket.socket, host: str) -> str:
    """The address to open in a browser on this machine."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"
