"""Which request gets which answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from whycam.app.limits import Limits
from whycam.app.live_explainer import Choice, LiveExplainer
from whycam.app.pages import Page
from whycam.app.security import AllowedHosts, RequestFilter
from whycam.app.uploads import UploadReader, client_disconnect
from whycam.app.work_queue import WorkQueue
from whycam.errors import HardwareError, WhycamError, within_hardware

_log = logging.getLogger("whycam.app")


@dataclass(frozen=True)
class Site:
    """Everything that is served.

    Attributes:
        hosts: the names it answers to.
        report: a study's report, at ``/``.
        chunks: its files, at ``/report_files/NAME``.
        live: explains the images that the live page sends.
        live_page: at ``/``, or at ``/live`` beside a report.
    """

    hosts: AllowedHosts
    report: Page | None = None
    chunks: Mapping[str, bytes] = field(default_factory=dict)
    live: LiveExplainer | None = None
    live_page: Page | None = None


def create_app(site: Site, queue: WorkQueue, limits: Limits) -> ASGIApp:
    """The ASGI application."""
    uploads = UploadReader(limits)
    hardware_errors = within_hardware("choose fewer layers or another method", "the server has to be started again")

    async def explain(request: Request) -> Response:
        if site.live is None:
            raise HTTPException(404, "this server has no model: it shows a report only")
        query = request.query_params
        choice = Choice(query.get("method", "gradcam"), tuple(query.getlist("layer")), query.get("class", ""))
        async with uploads.read(request) as content:
            if not content:
                raise HTTPException(400, "the request holds no image")
            work = partial(hardware_errors(site.live.explain), content, choice)
            return JSONResponse(await queue.run(work, partial(client_disconnect, request)))

    async def chunk(request: Request) -> Response:
        # A lookup: no name from a request is ever used as a path.
        content = site.chunks.get(request.path_params["name"])
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="text/javascript")

    routes = [
        Route("/explain", explain, methods=["POST"]),
        Route("/report_files/{name}", chunk),
        _fixed("/health", JSONResponse({"status": "ok"})),
        _fixed("/favicon.ico", Response(status_code=204)),
    ]
    if site.report is not None:
        routes.append(_fixed("/", _html(site.report)))
        if site.live_page is not None:
            routes.append(_fixed("/live", _html(site.live_page)))
    elif site.live_page is not None:
        routes += [_fixed("/", _html(site.live_page)), _fixed("/live", RedirectResponse("/"))]
    handlers = {HTTPException: _refused, WhycamError: _whycam_error, ClientDisconnect: _disconnected, 500: _failed}
    return RequestFilter(Starlette(routes=routes, exception_handlers=handlers), site.hosts)


def _fixed(path: str, response: Response) -> Route:
    """A route whose answer is always the same."""
    return Route(path, response, methods=["GET"])


def _html(page: Page) -> Response:
    return HTMLResponse(page.content, headers={"Content-Security-Policy": page.policy})


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _whycam_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, HardwareError):
        _log.error("%s", error)
    return JSONResponse({"error": str(error)}, 503 if isinstance(error, HardwareError) else 400)


def _disconnected(_request: Request, _error: Exception) -> Response:
    """Nobody reads this answer; 499 is the usual status for it in logs."""
    return Response(status_code=499)


def _failed(_request: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
