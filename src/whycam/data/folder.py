"""Any folder of images, ``class/name.png``, read lazily."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from whycam.data.batches import EncodedImage, decode_batch
from whycam.data.decode import EXTENSIONS
from whycam.data.labels import match_classes
from whycam.data.source import IndexArray
from whycam.data.splits import choose_split, split_of_name, split_of_undivided_data
from whycam.errors import WhycamError


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images in one folder per class; only the names are held in memory.

    Attributes:
        root: the folder that ``ids`` are relative to.
        size: (height, width) that images are fitted to on reading; None if they are all of one size.
    """

    root: Path
    name: str
    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: IndexArray
    size: tuple[int, int] | None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over class names, and each image's id, file size and label, in order.

        Contents are not read: a file that is replaced by another of the same size leaves it unchanged.
        """
        state = hashlib.sha256("\n".join(self.classes).encode())
        for image, label in zip(self.ids, self.labels, strict=True):
            try:
                length = (self.root / image).stat().st_size
            except OSError as error:
                raise WhycamError(f"{self.root / image} cannot be read any more ({error.strerror})") from error
            state.update(f"\n{image}\t{length}\t{label}".encode())
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, indices: Sequence[int] | IndexArray) -> Tensor:
        """The images at ``indices`` as (B, 3, H, W) uint8 RGB, fitted to ``size``."""
        return decode_batch([self._encoded(index) for index in indices], self.size, self._encoded(0))

    def _encoded(self, index: int | np.int64) -> EncodedImage:
        path = self.root / self.ids[index]
        return EncodedImage(path, str(path))


def open_folder(
    root: Path, split: str, *, size: tuple[int, int] | None = None, classes: Sequence[str] | None = None
) -> ImageFolder | None:
    """Open ``root/class/name.ext`` or ``root/split/class/name.ext``.

    Classes are the folders with an image in them (at any depth), sorted; those of all splits count, so that labels
    mean the same in each. Names beginning with a dot are passed over, other files too.

    Returns:
        The source, or None if there is no class folder with an image in it.

    Raises:
        WhycamError: the folder has no such split, or a class that is not among ``classes``.
    """
    inside: dict[str, Path] = {}
    for folder in _subfolders(root):
        spelled = split_of_name(folder.name)
        if spelled and spelled not in inside and _class_names(folder):
            inside[spelled] = folder
    if inside:
        split = choose_split(split, inside, str(root))
        bases, chosen = list(inside.values()), inside[split]
    else:
        bases, chosen = [root], root
    names = sorted({name for base in bases for name in _class_names(base)})
    if not names:
        return None
    if not inside:
        split = split_of_undivided_data(split, root.resolve().name, str(root))
    positions = np.arange(len(names)) if classes is None else match_classes(names, classes, str(root))
    ids: list[str] = []
    labels: list[int] = []
    for name, position in zip(names, positions, strict=True):
        images = sorted(path.relative_to(root).as_posix() for path in _images(chosen / name))
        ids += images
        labels += [int(position)] * len(images)
    return ImageFolder(
        root=root,
        name=root.resolve().name or str(root),
        split=split,
        classes=tuple(names) if classes is None else tuple(classes),
        ids=tuple(_check_utf8(image, root) for image in ids),
        labels=np.asarray(labels, dtype=np.int64),
        size=size,
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise WhycamError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error


def _class_names(folder: Path) -> list[str]:
    return [inside.name for inside in _subfolders(folder) if next(_images(inside), None) is not None]


def _images(folder: Path) -> Iterator[Path]:
    """Image files at any depth, in no particular order; linked files count, linked folders further down do not."""
    for base, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                yield Path(base, name)


def _check_utf8(image: str, root: Path) -> str:
    try:
        image.encode()
    except UnicodeEncodeError:
        raise WhycamError(f"{root} has a file whose name is not valid UTF-8 ({image!r}): rename it") from None
    return image
