"""For every error the nearest images, by the cosine of the features that the classifier's head is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.data.source import IndexArray

SHOWN = 3
"""Nearest correct predictions of each of the two classes."""
VOTES = 10
"""Nearest images of any class, whose labels are compared with the error's."""
KINDS = ("true", "predicted", "any")
SIDE = 96
"""Neighbors are there to be looked at, not measured: larger ones are kept reduced to this many pixels."""
_ROWS = 1024  # errors at a time: bounds the matrix of similarities

NEIGHBORS = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),  # the error
        ("kind", pa.string()),  # correct predictions of its "true" or its "predicted" class, or "any" image
        ("rank", pa.int16()),  # 1 is the nearest
        ("neighbour_index", pa.int32()),
        ("neighbour_id", pa.string()),
        ("similarity", pa.float32()),  # cosine of the two images' features, −1 to 1
    ]
)


@dataclass(frozen=True)
class Block:
    """A run of the data set's images.

    Attributes:
        index: (M,) positions in the data set, rising.
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
    """The nearest images of every error, found a block at a time, so that memory grows with the errors alone.

    Args:
        errors: E images, all of them wrong.
        predicted: (E,) the classes they were taken for.
        blocks: all images, in the data set's order.
        shown: how many of kind "true" and of kind "predicted".
        votes: how many of kind "any"; an error is not its own neighbor.

    Returns:
        For each of ``KINDS`` the similarities (E, k), falling, and the positions (E, k); −1 where there are fewer.
        Which of equally similar images come first is not defined.
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
    k = values.shape[1]
    best = similarity.topk(min(k, similarity.shape[1]), dim=1)
    new = torch.where(best.values > -torch.inf, index[best.indices], -1)
    values, positions = torch.cat([values, best.values], 1), torch.cat([positions, new], 1)
    # Twice stable: by similarity, and what is equally similar by position.
    order = positions.argsort(dim=1, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    return values.gather(1, order), positions.gather(1, order)


def neighbor_rows(
    errors: IndexArray, found: dict[str, tuple[Tensor, Tensor]], ids: Callable[[IndexArray], Sequence[str]]
) -> pa.Table:
    """One row per error, kind and rank, errors outermost; where there are fewer neighbors there are fewer rows."""
    places = torch.cat([found[kind][1] for kind in KINDS], 1).numpy()
    similar = torch.cat([found[kind][0] for kind in KINDS], 1).numpy()
    slots = [(kind, rank) for kind in KINDS for rank in range(1, found[kind][1].shape[1] + 1)]
    row, slot = np.nonzero(places >= 0)
    position = places[row, slot]
    columns = [
        errors[row], list(ids(errors[row])), [slots[s][0] for s in slot], [slots[s][1] for s in slot], position,
        list(ids(position)), similar[row, slot],
    ]  # fmt: skip
    arrays = [pa.array(values, type=field.type, safe=False) for values, field in zip(columns, NEIGHBORS, strict=True)]
    return pa.table(arrays, schema=NEIGHBORS)


def reduced(pixels: Tensor, side: int = SIDE) -> Tensor:
    """(B, 3, H, W) uint8 with no side longer than ``side``: smaller images as they are, larger ones area-averaged."""
    longest = max(pixels.shape[-2:])
    if longest <= side:
        return pixels
    height, width = (max(1, round(size * side / longest)) for size in pixels.shape[-2:])
    return F.interpolate(pixels.float(), (height, width), mode="area").round().to(torch.uint8)
