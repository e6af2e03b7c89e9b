"""Perturbed copies of the batch: how many share a pass, the noise of each copy, and the mean over many maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

ROWS = 64
"""Images in one pass; more would take memory without being faster."""
_BLOCK = 16


def batched_copies(count: int, images: int) -> Iterator[range]:
    """Group ``count`` copies of a batch of ``images`` images into passes of at most ``ROWS`` images, or of one copy."""
    copies = max(1, ROWS // images)
    for start in range(0, count, copies):
        yield range(start, min(start + copies, count))


class Noise:
    """A sequence of standard Gaussian noise fields, drawn when they are indexed and not stored.

    The fields depend on the generator alone, not on the order of access. In increasing order each field is drawn once;
    access to an earlier one restarts the generator.

    Args:
        draw: a fresh generator, which is used for nothing else.
        count: number of fields.
        shape: of each field.
        dtype: of the draws.
        block: number of fields that are drawn as one tensor.
    """

    def __init__(
        self, draw: torch.Generator, count: int, shape: Sequence[int], *, dtype: torch.dtype, block: int = 1
    ) -> None:
        self._draw, self._start = draw, draw.get_state()
        self._count, self._shape, self._dtype, self._block_size = count, tuple(shape), dtype, block
        self._block, self._number = torch.empty(0), -1

    @classmethod
    def from_single_tensor(cls, draw: torch.Generator, count: int, shape: Sequence[int]) -> Noise:
        """The fields that one float32 tensor of ``count`` fields would have, without allocating that tensor.

        torch fills a tensor in groups of 16 numbers, so drawing 16 fields at a time gives the same values.
        """
        block = _BLOCK if count > _BLOCK and math.prod(shape) >= _BLOCK else count
        return cls(draw, count, shape, dtype=torch.float32, block=block)

    def __getitem__(self, index: int) -> Tensor:
        number = index // self._block_size
        if number < self._number:
            self._draw.set_state(self._start)
            self._number = -1
        while self._number < number:
            self._number += 1
            fields = min(self._block_size, self._count - self._number * self._block_size)
            self._block = torch.randn((fields, *self._shape), generator=self._draw, dtype=self._dtype)
        return self._block[index % self._block_size]


def mean(maps: Iterable[Tensor], held: int = ROWS) -> Tensor:
    """The mean of many maps of one shape, with at most ``held`` maps in memory."""
    total, count, pending = None, 0, list[Tensor]()
    for raw in maps:
        pending.append(raw)
        count += 1
        if len(pending) == held:
            total, pending = _sum(total, pending), []
    if total is None:
        return torch.stack(pending).mean(dim=0)
    return (_sum(total, pending) if pending else total) / count


def _sum(total: Tensor | None, maps: Sequence[Tensor]) -> Tensor:
    part = torch.stack(list(maps)).sum(dim=0)
    return part if total is None else total + part
