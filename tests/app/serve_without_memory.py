"""A server in which one method asks for a pebibyte of memory."""

from __future__ import annotations

import torch
from serving import serve_live

import whycam
from whycam.app.limits import Limits
from whycam.app.live_explainer import LiveExplainer


class Greedy(LiveExplainer):
    """Asks for more memory for LayerCAM than any machine has."""

    def explain(self, content, choice, token):
        if choice.method == "layercam":
            torch.empty(2**50, dtype=torch.uint8)
        return super().explain(content, choice, token)


serve_live(Greedy(*whycam.load("cifar10-resnet18")), Limits())
