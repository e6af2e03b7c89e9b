"""A server that asks for a pebibyte when it is to use one of its methods."""

from __future__ import annotations

import torch

import whycam
from whycam import console
from whycam.app.guard import Hosts
from whycam.app.limits import Limits
from whycam.app.live import LiveModel
from whycam.app.routes import Site
from whycam.app.server import addresses, listen, serve


class Greedy(LiveModel):
    """Wants more memory for LayerCAM than any machine has."""

    def explain(self, content, choice, ticket):
        if choice.method == "layercam":
            torch.empty(2**50, dtype=torch.uint8)
        return super().explain(content, choice, ticket)


with listen("127.0.0.1", 0) as listener:
    site = Site(Hosts.serving("127.0.0.1"), live=Greedy(*whycam.load("cifar10-resnet18")))
    serve(
        site, listener, lambda: (console.say_json({"url": addresses(listener, "127.0.0.1")}), console.flush()), Limits()
    )
