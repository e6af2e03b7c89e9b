"""Serve a live model from a script, as the command line does: on a free port, whose address it says."""

from __future__ import annotations

from whycam.app.guard import Hosts
from whycam.app.limits import Limits
from whycam.app.live import LiveModel
from whycam.app.routes import Site
from whycam.app.server import addresses, listen, serve
from whycam.cli import console


def serve_live(live: LiveModel, limits: Limits) -> None:
    """Until the process is stopped."""
    with listen("127.0.0.1", 0) as listener:
        site = Site(Hosts.serving("127.0.0.1"), live=live)
        where = {"url": addresses(listener, "127.0.0.1")}
        serve(site, listener, lambda: (console.say_json(where), console.flush()), limits)
