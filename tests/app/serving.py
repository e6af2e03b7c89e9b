"""Serve a live explainer from a script, on a free port, and print its address as the command line does."""

from __future__ import annotations

from whycam.app.limits import Limits
from whycam.app.live_explainer import LiveExplainer
from whycam.app.routes import Site
from whycam.app.security import AllowedHosts
from whycam.app.server import listen, serve, server_url
from whycam.cli import console


def serve_live(live: LiveExplainer, limits: Limits) -> None:
    """Until the process is stopped."""
    with listen("127.0.0.1", 0) as listener:
        site = Site(AllowedHosts.of_server("127.0.0.1"), live=live)
        where = {"url": server_url(listener, "127.0.0.1")}
        serve(site, listener, lambda: (console.say_json(where), console.flush()), limits)
