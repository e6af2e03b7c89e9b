"""The Grid Pointing Game: asked about a class, a map has to point at the one cell of a mosaic that shows it.

Böhle et al., "Convolutional dynamic alignment networks for interpretable classifications", CVPR 2021
(arXiv:2104.00032); Rao et al., "Towards better understanding attribution methods", CVPR 2022 (arXiv:2205.10435).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.explain import Explainer
from whycam.cam.explanation import Explanation
from whycam.cam.maps import only_finite
from whycam.cam.methods.registry import MethodLike
from whycam.cam.network.layers import LayerLike
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import Preprocessing
from whycam.metrics.localization.mosaic import Mosaics
from whycam.metrics.localization.pointing_game import cell_shares
from whycam.nn_utils import in_eval_mode


@dataclass(frozen=True, eq=False)
class GridPointing:
    """How much of the evidence for each cell's class was found in that cell.

    Attributes:
        scores: (method, layer) → (M, grid²) float64 in [0, 1], for each mosaic and cell.
        grid: cells along each side.
    """

    scores: Mapping[tuple[str, str], Tensor]
    grid: int

    @property
    def chance(self) -> float:
        """What evidence scores that is spread evenly; and, on average, evidence that is the same for all classes."""
        return 1 / self.grid**2

    def means(self) -> dict[tuple[str, str], float]:
        """(method, layer) → the mean over mosaics and cells."""
        return {key: float(scores.mean()) for key, scores in self.scores.items()}


def grid_pointing(
    model: nn.Module,
    mosaics: Mosaics,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    methods: Sequence[MethodLike] | MethodLike = "gradcam",
    *,
    preprocess: Preprocessing | None,
    batch_size: int = 16,
    strict: bool = True,
) -> GridPointing:
    """Ask about the class of every cell, and measure which share of the positive evidence lies in that cell.

    Maps are resized bilinearly to the mosaic, as heatmaps are. A network is free to look over a cell's borders: of the
    CIFAR ResNet-18 a position depends on 25 pixels at layer2, 53 at layer3 and 109 at layer4, more than a whole cell of
    32. So at deep layers some evidence rightly lies outside, and 1 is not to be had; compare at the same layer, and
    with the controls (``random``, ``sobel``).

    Args:
        model: takes images of any size; left as it was.
        mosaics: see `whycam.metrics.localization.mosaic.mosaics`; they are moved to the model's device.
        layers: as `whycam.explain` takes them.
        methods: as `whycam.explain` takes them.
        preprocess: makes network input of mosaics without changing their size, ``spec.preprocess.normalize`` say; None
            feeds them as they are.
        batch_size: mosaics at a time, each asked about all of its cells in one forward pass.
        strict: refuse maps that are not finite; otherwise they count as no evidence.

    Raises:
        WhycamError: what `whycam.explain` refuses, ``preprocess`` changes the size, the network takes no images of that
            size, or a map is not finite and ``strict``.
    """
    if batch_size < 1:
        raise WhycamError(f"batch_size must be at least 1, got {batch_size}")
    explainer = Explainer(model, layers, methods)
    parameter = next(model.parameters(), None)
    device = mosaics.images.device if parameter is None else parameter.device
    size, cells = tuple(mosaics.images.shape[2:]), mosaics.grid**2
    found: dict[tuple[str, str], list[Tensor]] = {}
    for start in range(0, len(mosaics.images), batch_size):
        chosen = slice(start, start + batch_size)
        inputs, classes = mosaics.images[chosen].to(device), mosaics.classes[chosen]
        if preprocess is not None:
            inputs = preprocess(inputs)
        if tuple(inputs.shape[2:]) != size:
            raise WhycamError(
                f"preprocess makes {_sides(inputs.shape[2:])} of mosaics of {_sides(size)}: give what normalizes "
                "alone, spec.preprocess.normalize say"
            )
        explanation = _explained(explainer, inputs, classes, mosaics.grid)
        for method, layer in dict.fromkeys((method, layer) for method, layer, _ in explanation.maps):
            maps = torch.stack([explanation.maps[method, layer, str(cell)] for cell in range(cells)], dim=1)
            maps = maps.flatten(0, 1)
            shares = cell_shares(maps if strict else only_finite(maps), mosaics.grid, size=size).view(-1, cells, cells)
            found.setdefault((method, layer), []).append(shares.diagonal(dim1=1, dim2=2).cpu())
    return GridPointing({key: torch.cat(scores) for key, scores in found.items()}, mosaics.grid)


def _explained(explainer: Explainer, inputs: Tensor, classes: Tensor, grid: int) -> Explanation:
    """All cells' classes from one forward pass: the target ``str(cell)`` is the class of that cell."""
    try:
        return explainer(inputs, {str(cell): column for cell, column in enumerate(classes.unbind(dim=1))})
    except (RuntimeError, ValueError, AssertionError) as error:
        height, width = inputs.shape[2:]
        cell = inputs[:1, :, : height // grid, : width // grid]
        if _takes(explainer.model, inputs[:1]) or not _takes(explainer.model, cell):
            raise  # the size is not to blame
        raise WhycamError(
            f"the model takes images of {_sides(cell.shape[2:])} and none of {_sides((height, width))}, as the mosaics "
            "are: the game needs a network that takes any size, with adaptive pooling before its linear layers and no "
            "fixed table of positions"
        ) from error


def _takes(model: nn.Module, images: Tensor) -> bool:
    try:
        with in_eval_mode(model), torch.no_grad():
            model(images)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _sides(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
