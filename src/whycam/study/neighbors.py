"""The nearest images of every error, by the cosine of the features that the network's last linear layer receives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SHOWN = 3
"""Number of nearest correct predictions of the error's true and of its predicted class, each."""
VOTES = 10
"""Number of nearest images of any class. Their labels are compared with the error's."""
KINDS = ("true", "predicted", "any")
SIDE = 96
"""Pixels of a neighbor's longer side; larger ones are stored reduced, since neighbors are only looked at."""
_ROWS = 1024  # errors at a time; bounds the matrix of similarities


@dataclass(frozen=True)
class Block:
    """Consecutive images of the data set.

    Attributes:
        index: (M,) positions in the data set, ascending.
        label: (M,) their labels.
        correct: (M,) whether they were classified correctly.
        features: (M, D) of length 1.
    """

    index: Tensor
    label: Tensor
    correct: Tensor
    features: Tensor


def nearest(
    errors: Block, predicted: Tensor, blocks: Iterable[Block], shown: int = SHOWN, votes: int = VOTES
) -> dict[str, tuple[Tensor, Tensor]]:
    """Find the nearest images of every error. Only one block is in memory, so memory grows with the errors alone.

    Args:
        errors: E misclassified images.
        predicted: (E,) their predicted classes.
        blocks: all images, in the data set's order.
        shown: number of neighbors of kind "true" and of kind "predicted", each.
        votes: number of neighbors of kind "any"; an error is not its own neighbor.

    Returns:
        For each of ``KINDS`` the similarities (E, k), descending, and the positions (E, k), −1 where there are fewer.
        Of equally similar images in one block any may be chosen.
    """
    count = len(errors.index)
    found = {
        kind: (torch.full((count, k), -torch.inf), torch.full((count, k), -1))
        for kind, k in zip(KINDS, (shown, shown, votes), strict=True)
    }
    queries = errors.features.float()
    for block in blocks:
        candidates = block.features.float().T
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            similarity = queries[rows] @ candidates
            allowed = {
                "true": block.correct & (block.label == errors.label[rows, None]),
                "predicted": block.correct & (block.label == predicted[rows, None]),
                "any": block.index != errors.index[rows, None],
            }
            for kind, (values, positions) in found.items():
                masked = similarity.masked_fill(~allowed[kind], -torch.inf)
                values[rows], positions[rows] = _merged(values[rows], positions[rows], masked, block.index)
    return found


def _merged(values: Tensor, positions: Tensor, similarity: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the best of those found so far and of a block's candidates."""
    k = values.shape[1]
    best = similarity.topk(min(k, similarity.shape[1]), dim=1)
    new = torch.where(best.values > -torch.inf, index[best.indices], -1)
    values, positions = torch.cat([values, best.values], 1), torch.cat([positions, new], 1)
    # Two stable sorts: by similarity, equal similarities by position.
    order = positions.argsort(dim=1, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    return values.gather(1, order), positions.gather(1, order)


def reduced(pixels: Tensor, side: int = SIDE) -> Tensor:
    """Reduce (B, 3, H, W) uint8 so that no side is longer than ``side``, by area averages; smaller ones stay."""
    longest = max(pixels.shape[-2:])
    if longest <= side:
        return pixels
    height, width = (max(1, round(size * side / longest)) for size in pixels.shape[-2:])
    return F.interpolate(pixels.float(), (height, width), mode="area").round().to(torch.uint8)
