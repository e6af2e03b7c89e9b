"""Where the published study looked."""

from __future__ import annotations

from torch import nn

STUDY_LAYERS = ("layer2[-2]", "layer3[-2]", "layer4[-1]")


def study_layers(model: nn.Module) -> tuple[str, ...] | None:
    """The study's three layers where the network has the ResNet's four stages, else None: the last spatial layer."""
    stages = dict(model.named_children())
    return STUDY_LAYERS if all(layer.partition("[")[0] in stages for layer in STUDY_LAYERS) else None
