"""A server that asks for a pebibyte when it is to use one of its methods."""

from __future__ import annotations

import torch
from serving import serve_live

import whycam
from whycam.app.limits import Limits
from whycam.app.live import LiveModel


class Greedy(LiveModel):
    """Wants more memory for LayerCAM than any machine has."""

    def explain(self, content, choice, ticket):
        if choice.method == "layercam":
            torch.empty(2**50, dtype=torch.uint8)
        return super().explain(content, choice, ticket)


serve_live(Greedy(*whycam.load("cifar10-resnet18")), Limits())
