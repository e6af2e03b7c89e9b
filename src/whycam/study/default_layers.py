"""The layers that a study explains by default, and the check that its methods can be shown side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.cam.explanation import Explanation
from whycam.cam.inspect import default_layer
from whycam.cam.methods import Method
from whycam.errors import WhycamError
from whycam.models.resnet import study_layers


def default_layers(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The layers to explain by default: the published study's three, or else the last spatial layer.

    Args:
        model: the network.
        images: a batch of its input.
    """
    return study_layers(model) or (default_layer(model, images).name,)


def check_grids(methods: Sequence[Method], trial: Explanation) -> None:
    """Check that maps of the same layer can be shown side by side: one map per method and layer, all of one size.

    Args:
        methods: the study's.
        trial: the methods' maps of one image.

    Raises:
        WhycamError: a method gives no separate map for each layer, or maps of another size.
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
