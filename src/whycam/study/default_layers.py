"""Where the published study looked, and what a study can lay side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.cam.explanation import Explanation
from whycam.cam.inspect import default_layer
from whycam.cam.methods import Method
from whycam.errors import WhycamError
from whycam.models.resnet import study_layers


def chosen_layers(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Where to look if nobody says: the study's three layers, or else the last spatial layer.

    Args:
        model: the network.
        images: a batch as it takes them.
    """
    return study_layers(model) or (default_layer(model, images).name,)


def check_grids(methods: Sequence[Method], trial: Explanation) -> None:
    """A study lays maps of the same layer side by side: every method has to give one per layer, on the layer's grid.

    Args:
        methods: the study's.
        trial: what they give for one image.

    Raises:
        WhycamError: a method gives no map of its own for each layer, or one on another grid.
    """
    grids = {layer: raw.shape for (name, layer, _), raw in trial.maps.items() if name == methods[0].name}
    for method in methods:
        found = {key[1]: raw.shape for key, raw in trial.maps.items() if key[0] == method.name}
        if found.keys() != trial.channels.keys():
            raise WhycamError(
                f"{method.title} gives no map of its own for each layer, so a study cannot lay it beside others; "
                "whycam explain shows it"
            )
        for layer, shape in found.items():
            if shape != grids[layer]:
                raise WhycamError(
                    f"{method.title} at {layer} is not on the grid of {methods[0].title}, so a study cannot lay them "
                    "side by side; make a study of each, or use whycam explain"
                )
