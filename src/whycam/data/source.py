"""The interface of a data set: images in a fixed order, with labels and ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from whycam.errors import WhycamError

IndexArray = np.ndarray[tuple[int], np.dtype[np.int64]]


class ImageSource(Protocol):
    """Images that are read a batch at a time, so that memory does not grow with their number.

    Attributes:
        name: what the data set is called in reports, for example "CIFAR-10".
        split: "train", "test", "val", or "all" where the source has no splits.
        classes: class names; ``labels`` index them.
        ids: one stable, unique name per image (``test/00042``, ``cat/felix.png``).
        labels: (N,) int64.
        digest: SHA-256 (hex) of the content, for the manifest: the same data gives the same digest however stored
            where that can be afforded (CIFAR layouts), else of names, sizes and labels (image folders).
    """

    @property
    def name(self) -> str:
        """What the data set is called."""
        ...

    @property
    def split(self) -> str:
        """Which part of the data set this is: "train", "test", "val" or "all"."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by the labels."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """One stable, unique name per image."""
        ...

    @property
    def labels(self) -> IndexArray:
        """(N,) int64."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, indices: Sequence[int] | IndexArray) -> Tensor:
        """The images at ``indices`` as (B, 3, H, W) uint8 RGB on the CPU, all of one size."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images held in memory (or a memory map): CIFAR-10 in any of its layouts, or your own array.

    Attributes:
        images: (N, 3, H, W) uint8 RGB.
        labels: (N,) int64, each below ``len(classes)``.
    """

    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    labels: IndexArray
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != np.uint8:
            raise WhycamError(
                f"{self.name}: images must be (N, 3, H, W) uint8, got {self.images.shape} {self.images.dtype}"
            )
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise WhycamError(
                f"{self.name}: {len(self.images)} images, {len(self.labels)} labels and {len(self.ids)} ids "
                "must be equally many"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise WhycamError(
                f"{self.name}: labels run from {self.labels.min()} to {self.labels.max()}, "
                f"but there are {len(self.classes)} classes"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over class names, labels (one int64 each) and pixels, in order."""
        state = hashlib.sha256("\n".join(self.classes).encode())
        state.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        state.update(np.ascontiguousarray(self.images).data)
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int] | IndexArray) -> Tensor:
        """The images at ``indices`` as (B, 3, H, W) uint8."""
        return torch.from_numpy(self.images[np.asarray(indices, dtype=np.int64)])
