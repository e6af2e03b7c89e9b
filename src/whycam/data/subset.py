"""A subset of a data set, which is a data set too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from whycam.data.source import ImageSource, IndexArray
from whycam.errors import WhycamError


@dataclass(frozen=True, eq=False)
class Subset:
    """The images of ``source`` at ``indices``, in that order, under the ids that they have there.

    Attributes:
        indices: (n,) int64 positions in ``source``.
        name: what reports call it.
    """

    source: ImageSource
    indices: IndexArray
    name: str

    def __post_init__(self) -> None:
        if len(self.indices) and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < len(self.source):
            raise WhycamError(
                f"{self.source.name} has {len(self.source):,} images; a part of it cannot hold those from "
                f"{self.indices.min()} to {self.indices.max()}"
            )

    @property
    def split(self) -> str:
        """The split of ``source``."""
        return self.source.split

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of ``source``, also those without an image here."""
        return self.source.classes

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids that the images have in ``source``."""
        return tuple(self.source.ids[index] for index in self.indices.tolist())

    @cached_property
    def labels(self) -> IndexArray:
        """(n,) int64."""
        return self.source.labels[self.indices]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digest of ``source`` and the positions."""
        state = hashlib.sha256(self.source.digest.encode())
        state.update(self.indices.astype("<i8").tobytes())
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int] | IndexArray) -> Tensor:
        """The images at ``indices`` of this part as (B, 3, H, W) uint8."""
        return self.source.read(self.indices[np.asarray(indices, dtype=np.int64)])


def take(source: ImageSource, n: int) -> ImageSource:
    """The first ``n`` images in the order of the source, which keep their ids; all of them if there are fewer.

    CIFAR-10 is in random order, so that its first images are a fair sample; an image folder is sorted by class, so
    that they are not.

    Raises:
        WhycamError: ``n`` is below one.
    """
    if n < 1:
        raise WhycamError(f"the number of images to take must be at least 1, got {n}")
    if n >= len(source):
        return source
    return Subset(source, np.arange(n, dtype=np.int64), f"{source.name}, first {n:,}")
