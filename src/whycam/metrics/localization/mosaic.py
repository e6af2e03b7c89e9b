"""Mosaics of images of different classes: the evidence for a class must lie in the cell that shows the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.metrics.checks import check_images, dtype_name
from whycam.seeds import generator


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Grids of grid × grid images, each image of another class.

    Attributes:
        images: (M, C, grid·H, grid·W) in [0, 1], on the device of the original images.
        members: (M, grid²) int64, the index of the image in each cell, row by row.
        classes: (M, grid²) int64, the class of that image.
    """

    images: Tensor
    members: Tensor
    classes: Tensor

    @property
    def grid(self) -> int:
        """The number of cells along each side."""
        return math.isqrt(self.members.shape[1])


def mosaics(
    images: Tensor, classes: Tensor | Sequence[int], *, grid: int = 3, count: int = 100, seed: int = 0
) -> Mosaics:
    """Draw mosaics for the Grid Pointing Game.

    Each mosaic shows grid² different classes, drawn at random in random order, and one random image of each. Mosaic
    number m depends on the seed and on m, not on ``count``.

    Args:
        images: (N, C, H, W) in [0, 1], before normalization. Choose images that the network classifies with confidence
            (`confident`): for the others, nobody knows where the evidence lies.
        classes: (N,) the class of each image.
        grid: the number of cells along each side.
        count: M, the number of mosaics.
        seed: seeds the draw.

    Raises:
        WhycamError: an image lies outside [0, 1], ``classes`` is not one index per image, ``grid`` or ``count`` is too
            small, or there are fewer classes than cells.
    """
    check_images(images)
    classes = torch.as_tensor(classes).cpu()
    if classes.shape != (len(images),) or classes.is_floating_point():
        raise WhycamError(
            f"classes must be (N,) whole numbers, one for each of {len(images)} images, got {tuple(classes.shape)} "
            f"{dtype_name(classes)}"
        )
    if grid < 2 or count < 1:
        raise WhycamError(f"grid must be at least 2 cells per side and count at least 1, got {grid=} and {count=}")
    pools = [(classes == kind).nonzero().flatten() for kind in torch.unique(classes)]
    if len(pools) < grid**2:
        raise WhycamError(
            f"a mosaic of {grid}×{grid} needs images of {grid**2} different classes, and there are {len(pools)}: give "
            "more images or a smaller grid"
        )
    members = torch.stack(
        [_draw_members(pools, grid**2, generator("mosaics", seed, number)) for number in range(count)]
    )
    cells = images[members.to(images.device)].view(count, grid, grid, *images.shape[1:])
    return Mosaics(cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3), members, classes[members].long())


def _draw_members(pools: Sequence[Tensor], cells: int, draw: torch.Generator) -> Tensor:
    """(cells,) image indices: different classes in random order, one image of each."""
    chosen = [pools[kind] for kind in torch.randperm(len(pools), generator=draw)[:cells].tolist()]
    return torch.stack([pool[torch.randint(len(pool), (), generator=draw)] for pool in chosen])


def confident(logits: Tensor, labels: Tensor | Sequence[int], threshold: float = 0.5) -> Tensor:
    """The images that are classified correctly with at least the given softmax probability.

    The authors of the Grid Pointing Game sort images by the class's logit and require its sigmoid to exceed 0.5; their
    networks are trained with binary cross-entropy. For a network trained with softmax, a single logit has no absolute
    meaning, so this function uses the softmax probability.

    Args:
        logits: (N, K).
        labels: (N,) the true classes.
        threshold: in [0, 1]; Rao et al. (CVPR 2022, arXiv:2205.10435) use 0.99.

    Returns:
        (n,) int64 indices, the most confident image first.

    Raises:
        WhycamError: the shapes do not match, or the threshold is not a probability.
    """
    labels = torch.as_tensor(labels, device=logits.device)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise WhycamError(
            f"logits must be (N, K) and labels (N,), one for each image, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise WhycamError(f"threshold must be a probability from 0 to 1, got {threshold}")
    confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    return order[((predicted == labels) & (confidence >= threshold))[order]]
