"""Mosaics of images of different classes: for each class it is known where its evidence must lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import check_images
from whycam.seeds import generator


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Images put together, grid × grid, no two of them of one class.

    Attributes:
        images: (M, C, grid·H, grid·W) in [0, 1], on the device of the images they are made of.
        members: (M, grid²) int64, which image stands in which cell, row by row.
        classes: (M, grid²) int64, of what class it is.
    """

    images: Tensor
    members: Tensor
    classes: Tensor

    @property
    def grid(self) -> int:
        """Cells along each side."""
        return math.isqrt(self.members.shape[1])


def mosaics(
    images: Tensor, classes: Tensor | Sequence[int], *, grid: int = 3, count: int = 100, seed: int = 0
) -> Mosaics:
    """Draw mosaics for the Grid Pointing Game.

    For each, grid² classes are drawn without replacement, and an image of each, in random order. What a mosaic holds
    depends on the seed and its number, not on ``count``.

    Args:
        images: (N, C, H, W) in [0, 1], before normalization; choose those that the network is sure of (`confident`),
            for of others nobody knows where the evidence lies.
        classes: (N,) of what class each is.
        grid: cells along each side.
        count: M, how many mosaics.
        seed: of what is drawn.

    Raises:
        WhycamError: an image lies outside [0, 1], the classes are not one index an image, ``grid`` or ``count`` is too
            small, or there are fewer different classes than cells.
    """
    check_images(images)
    classes = torch.as_tensor(classes).cpu()
    if classes.shape != (len(images),) or classes.is_floating_point():
        raise WhycamError(
            f"classes must be (N,) whole numbers, one for each of {len(images)} images, got {tuple(classes.shape)} "
            f"{str(classes.dtype).removeprefix('torch.')}"
        )
    if grid < 2 or count < 1:
        raise WhycamError(f"a mosaic has at least 2 cells a side, and there is at least 1, got {grid=} and {count=}")
    pools = [(classes == kind).nonzero().flatten() for kind in torch.unique(classes)]
    if len(pools) < grid**2:
        raise WhycamError(
            f"a mosaic of {grid}×{grid} needs images of {grid**2} different classes, and there are {len(pools)}: give "
            "more images, or a smaller grid"
        )
    members = torch.stack([_drawn(pools, grid**2, generator("mosaics", seed, number)) for number in range(count)])
    cells = images[members.to(images.device)].view(count, grid, grid, *images.shape[1:])
    return Mosaics(cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3), members, classes[members].long())


def _drawn(pools: Sequence[Tensor], cells: int, draw: torch.Generator) -> Tensor:
    chosen = [pools[kind] for kind in torch.randperm(len(pools), generator=draw)[:cells].tolist()]
    return torch.stack([pool[torch.randint(len(pool), (), generator=draw)] for pool in chosen])


def confident(logits: Tensor, labels: Tensor | Sequence[int], threshold: float = 0.5) -> Tensor:
    """Which images are classified right, with at least that softmax probability.

    The Grid Pointing Game's authors sort by the class's logit and ask its sigmoid for more than 0.5, as networks
    trained with binary cross-entropy allow. One trained with softmax leaves open what a single logit is measured from,
    so it is the probability here.

    Args:
        logits: (N, K).
        labels: (N,) the right classes.
        threshold: in [0, 1]; Rao et al. (CVPR 2022, arXiv:2205.10435) ask for 0.99.

    Returns:
        (n,) int64 indices, the surest first.

    Raises:
        WhycamError: the shapes do not belong together, or the threshold is no probability.
    """
    labels = torch.as_tensor(labels, device=logits.device)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise WhycamError(
            f"logits must be (N, K) and labels (N,), one for each image, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise WhycamError(f"threshold is a probability, from 0 to 1, got {threshold}")
    sureness, predicted = logits.float().softmax(dim=1).max(dim=1)
    order = sureness.argsort(descending=True, stable=True)
    return order[((predicted == labels) & (sureness >= threshold))[order]]
