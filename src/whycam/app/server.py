"""The routes, and the process that serves them until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from whycam.app.desk import AbandonedError, Desk
from whycam.app.guard import Guard, Hosts
from whycam.app.intake import Intake, Refusal, until_gone
from whycam.app.live import Choice, LiveModel
from whycam.app.pages import Page
from whycam.errors import WhycamError

MAX_BYTES = 8 * 2**20
"""The largest file that is taken."""
TOTAL_BYTES = 64 * 2**20
"""What all uploads in progress and in the line may hold together."""
UPLOADS = 128
PLACES = 32
UPLOAD_SECONDS = 30.0
WORK_SECONDS = 120.0
CONNECTIONS = 512
HEAD_SECONDS = 15.0
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Site:
    """Everything that is served.

    Attributes:
        hosts: the names it answers to.
        report: a study's report, at ``/``.
        chunks: its files, at ``/report_files/NAME``.
        live: the network behind the live page.
        live_page: at ``/``, or at ``/live`` where there is a report.
    """

    hosts: Hosts
    report: Page | None = None
    chunks: Mapping[str, bytes] = field(default_factory=dict)
    live: LiveModel | None = None
    live_page: Page | None = None


def application(site: Site, desk: Desk) -> ASGIApp:
    """The ASGI application."""
    intake = Intake(each=MAX_BYTES, total=TOTAL_BYTES, bodies=UPLOADS, seconds=UPLOAD_SECONDS)

    async def explain(request: Request) -> Response:
        live = site.live
        if live is None:
            raise Refusal(404, "no network is served here")
        query = request.query_params
        choice = Choice(query.get("method", "gradcam"), tuple(query.getlist("layer")), query.get("class", ""))
        async with intake.body(request) as content:
            if not content:
                raise Refusal(400, "the request holds no image")
            answer = await desk.serve(lambda ticket: live.explain(content, choice, ticket), until_gone(request))
        return JSONResponse(answer)

    async def chunk(request: Request) -> Response:
        content = site.chunks.get(request.path_params["name"])
        if content is None:
            raise Refusal(404, "there is nothing here")
        return Response(content, media_type="text/javascript")

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def icon(_request: Request) -> Response:
        return Response(status_code=204)

    routes = [Route("/health", health), Route("/favicon.ico", icon), Route("/explain", explain, methods=["POST"])]
    if site.report is not None:
        routes += [Route("/", _serve(site.report)), Route("/report_files/{name}", chunk)]
        if site.live_page is not None:
            routes.append(Route("/live", _serve(site.live_page)))
    elif site.live_page is not None:
        routes += [Route("/", _serve(site.live_page)), Route("/live", _to_start)]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            Refusal: _refused,
            WhycamError: _bad_input,
            AbandonedError: _gone,
            ClientDisconnect: _gone,
            404: _nothing,
            405: _nothing,
            500: _failed,
        },
    )
    return Guard(app, site.hosts)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.

    Raises:
        WhycamError: the address is taken or none of this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WhycamError(f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port") from None


def serve(site: Site, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; work in progress is given up, answers on their way are sent.

    Args:
        site: what.
        listener: where; closed at the end.
        ready: called once requests are answered.
    """
    asyncio.run(_serve_until_told(site, listener, ready))


async def _serve_until_told(site: Site, listener: socket.socket, ready: Callable[[], None]) -> None:
    desk = Desk(places=PLACES, seconds=WORK_SECONDS)
    config = uvicorn.Config(
        application(site, desk),
        http=_Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
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

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._desk.close()
        super().handle_exit(sig, frame)


class _Connection(H11Protocol):
    """Closes a connection on which no whole request head arrives in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def _serve(page: Page) -> Callable[[Request], Response]:
    headers = {"Content-Security-Policy": page.policy}

    def show(_request: Request) -> Response:
        return Response(page.content, media_type="text/html", headers=headers)

    return show


def _to_start(_request: Request) -> Response:
    return RedirectResponse("/")


def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse({"error": refusal.sentence}, refusal.status, headers)


def _bad_input(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads this; 499 is what servers log for it."""
    return Response(status_code=499)


def _failed(_request: Request, error: Exception) -> Response:
    logging.getLogger("whycam.app").error("a request failed", exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


def _nothing(_request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    headers = getattr(error, "headers", None)
    return JSONResponse({"error": "there is nothing here" if status == 404 else "not that way"}, status, headers)


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
