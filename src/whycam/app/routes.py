"""The routes: which request gets which answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from whycam.app.desk import AbandonedError, Desk, Ticket
from whycam.app.guard import Guard, Hosts
from whycam.app.intake import Intake, Refusal, until_gone
from whycam.app.limits import Limits
from whycam.app.live import Choice, LiveModel
from whycam.app.pages import Page
from whycam.errors import HardwareError, WhycamError, within_hardware


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


def application(site: Site, desk: Desk, limits: Limits) -> ASGIApp:
    """The ASGI application."""
    intake = Intake(
        each=limits.file_bytes, total=limits.total_bytes, bodies=limits.uploads, seconds=limits.upload_seconds
    )

    async def explain(request: Request) -> Response:
        live = site.live
        if live is None:
            raise Refusal(404, "no network is served here")
        query = request.query_params
        choice = Choice(query.get("method", "gradcam"), tuple(query.getlist("layer")), query.get("class", ""))
        async with intake.body(request) as content:
            if not content:
                raise Refusal(400, "the request holds no image")
            work = partial(_explained, live, content, choice)
            answer = await desk.serve(work, lambda: until_gone(request))
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
            HardwareError: _unable,
            AbandonedError: _gone,
            ClientDisconnect: _gone,
            404: _nothing,
            405: _nothing,
            500: _failed,
        },
    )
    return Guard(app, site.hosts)


def _explained(live: LiveModel, content: bytes, choice: Choice, ticket: Ticket) -> dict[str, Any]:
    with within_hardware("choose fewer layers or another method", "the server has to be started again"):
        return live.explain(content, choice, ticket)


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


def _unable(_request: Request, error: Exception) -> Response:
    logging.getLogger("whycam.app").error("%s", error)
    return JSONResponse({"error": str(error)}, 503)


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
