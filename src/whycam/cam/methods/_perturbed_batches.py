"""Altered copies of the batch, a few at a time: which go together, and the noise that each of them meets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

ROWS = 64
"""Images in one pass; a larger one gains nothing and takes memory."""
_BLOCK = 16


def batched_copies(count: int, images: int) -> Iterator[range]:
    """Which of ``count`` copies of a batch of ``images`` share a pass of at most ``ROWS`` (one copy at least)."""
    each = max(1, ROWS // images)
    for start in range(0, count, each):
        yield range(start, min(start + each, count))


class Noise:
    """Fields of standard Gaussian noise by number, drawn when they are asked for and not kept.

    They depend on the generator alone, never on which are asked for together. Asked for in order each is drawn once;
    to go back, the generator begins anew.

    Args:
        draw: at its beginning; nobody else draws from it.
        count: how many fields there are.
        shape: of each.
        dtype: in which they are drawn.
        block: fields that are drawn as one tensor.
    """

    def __init__(
        self, draw: torch.Generator, count: int, shape: Sequence[int], *, dtype: torch.dtype, block: int = 1
    ) -> None:
        self._draw, self._begin = draw, draw.get_state()
        self._count, self._shape, self._dtype, self._each = count, tuple(shape), dtype, block
        self._block, self._number = torch.empty(0), -1

    @classmethod
    def from_single_tensor(cls, draw: torch.Generator, count: int, shape: Sequence[int]) -> Noise:
        """The fields of one float32 tensor of ``count`` of them, without ever making it.

        torch fills a tensor in groups of 16 numbers: drawing 16 fields at a time gives the same ones.
        """
        block = _BLOCK if count > _BLOCK and math.prod(shape) >= _BLOCK else count
        return cls(draw, count, shape, dtype=torch.float32, block=block)

    def __getitem__(self, index: int) -> Tensor:
        number = index // self._each
        if number < self._number:
            self._draw.set_state(self._begin)
            self._number = -1
        while self._number < number:
            self._number += 1
            members = min(self._each, self._count - self._number * self._each)
            self._block = torch.randn((members, *self._shape), generator=self._draw, dtype=self._dtype)
        return self._block[index % self._each]


def mean(maps: Iterable[Tensor], held: int = ROWS) -> Tensor:
    """The mean of many maps of one shape, of which no more than ``held`` are kept at a time."""
    total, count, kept = None, 0, list[Tensor]()
    for raw in maps:
        kept.append(raw)
        count += 1
        if len(kept) == held:
            total, kept = _sum(total, kept), []
    if total is None:
        return torch.stack(kept).mean(dim=0)
    return (_sum(total, kept) if kept else total) / count


def _sum(total: Tensor | None, kept: Sequence[Tensor]) -> Tensor:
    part = torch.stack(list(kept)).sum(dim=0)
    return part if total is None else total + part
