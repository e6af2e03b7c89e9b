"""The Grid Pointing Game: the map of a class must point at the one cell of a mosaic that shows the class.

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
from whycam.errors import WhycamError, check_batch_size
from whycam.metrics.localization.mosaic import Mosaics
from whycam.metrics.localization.pointing_game import cell_shares
from whycam.metrics.scoring import Preprocessing
from whycam.nn_utils import in_eval_mode


@dataclass(frozen=True, eq=False)
class GridPointing:
    """The share of the evidence for each cell's class that lies in that cell.

    Attributes:
        scores: (method, layer) → (M, grid²) float64 in [0, 1], for each mosaic and cell.
        grid: the number of cells along each side.
    """

    scores: Mapping[tuple[str, str], Tensor]
    grid: int

    @property
    def chance(self) -> float:
        """The score of a constant map, and the mean score of a map that is the same for all classes."""
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
    """Explain the class of every cell, and compute the share of the positive evidence that lies in that cell.

    Maps are resized bilinearly to the mosaic, like heatmaps. A network may use pixels beyond a cell's border: in the
    CIFAR ResNet-18, a position depends on 25 pixels (along each axis) at layer2, 53 at layer3 and 109 at layer4, and a
    cell has 32. At deep layers some evidence therefore lies outside for good reason, and a score of 1 is out of reach.
    Compare scores at the same layer, and with the controls (``random``, ``sobel``).

    Args:
        model: takes images of any size; not changed.
        mosaics: see `whycam.metrics.mosaics`; they are moved to the model's device.
        layers: see `whycam.explain`.
        methods: see `whycam.explain`.
        preprocess: turns mosaics into network input without changing their size, for example
            ``spec.preprocess.normalize``; None passes them on unchanged.
        batch_size: mosaics in one forward pass, which serves all cells.
        strict: whether a map that is not finite raises an error; if not, it counts as a map without evidence.

    Raises:
        WhycamError: `whycam.explain` refuses an argument, ``preprocess`` changes the size, the network does not take
            images of that size, or ``strict`` and a map is not finite.
    """
    check_batch_size(batch_size)
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
                f"preprocess turns mosaics of {_sides(size)} into {_sides(inputs.shape[2:])}: give a function that "
                "only normalizes, for example spec.preprocess.normalize"
            )
        explanation = _explained(explainer, inputs, classes, mosaics.grid)
        for method, layer in dict.fromkeys((method, layer) for method, layer, _ in explanation.maps):
            maps = torch.stack([explanation.maps[method, layer, str(cell)] for cell in range(cells)], dim=1)
            maps = maps.flatten(0, 1)
            shares = cell_shares(maps if strict else only_finite(maps), mosaics.grid, size=size).view(-1, cells, cells)
            found.setdefault((method, layer), []).append(shares.diagonal(dim1=1, dim2=2).cpu())
    return GridPointing({key: torch.cat(scores) for key, scores in found.items()}, mosaics.grid)


def _explained(explainer: Explainer, inputs: Tensor, classes: Tensor, grid: int) -> Explanation:
    """Explain the classes of all cells from one forward pass; the target ``str(cell)`` is the class of that cell."""
    try:
        return explainer(inputs, {str(cell): column for cell, column in enumerate(classes.unbind(dim=1))})
    except (RuntimeError, ValueError, AssertionError) as error:
        height, width = inputs.shape[2:]
        cell = inputs[:1, :, : height // grid, : width // grid]
        if _takes(explainer.model, inputs[:1]) or not _takes(explainer.model, cell):
            raise  # the size is not the reason
        raise WhycamError(
            f"the model takes images of {_sides(cell.shape[2:])} but not of {_sides((height, width))}, the size of the "
            "mosaics: this metric needs a network that takes any size, with adaptive pooling before its linear layers "
            "and without a fixed table of positions"
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
