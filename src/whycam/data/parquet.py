"""Images in Parquet files, as Hugging Face ``datasets`` lays them out."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whycam.data.batches import EncodedImage, decode_batch
from whycam.data.cifar import CIFAR10_CLASSES, IMAGES_PER_BATCH, cifar_source
from whycam.data.decode import Pixels, decode_image
from whycam.data.labels import match_classes
from whycam.data.source import ArraySource, ImageSource, IndexArray
from whycam.data.splits import choose_split, split_of_name, split_of_undivided_data
from whycam.errors import WhycamError, missing_extra

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMN = "label"
_IN_MEMORY = 60_000  # images of 32×32 pixels: 184 MB
_SUBFOLDERS = ("", "plain_text", "data", "default")  # where a downloaded data set keeps its files
_SHARD = re.compile(r"^(?P<split>[A-Za-z]+)(?:-(?P<number>\d{5})-of-(?P<total>\d{5}))?.*\.parquet$")


@dataclass(frozen=True)
class _RowGroup:
    """A run of rows that is read at once."""

    file: Path
    number: int
    start: int


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Images that stay encoded in Parquet files until they are read, a row group at a time.

    Attributes:
        column: the image column, a struct with ``bytes``, or bytes themselves.
        size: (height, width) that images are fitted to on reading; None if they are all of one size.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: IndexArray
    digest: str
    column: str
    size: tuple[int, int] | None
    groups: tuple[_RowGroup, ...]
    _cache: dict[int, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, indices: Sequence[int] | IndexArray) -> Tensor:
        """The images at ``indices`` as (B, 3, H, W) uint8 RGB, fitted to ``size``."""
        return decode_batch([self._encoded(int(index)) for index in indices], self.size, self._encoded(0))

    def _encoded(self, index: int) -> EncodedImage:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        position = bisect_right(self.groups, index, key=lambda group: group.start) - 1
        group = self.groups[position]
        if position not in self._cache:
            self._cache.clear()  # one row group in memory at a time
            with _open(group.file) as file:
                self._cache[position] = file.read_row_group(group.number, columns=[self.column]).column(self.column)
        return EncodedImage(_content(self._cache[position][index - group.start], self.ids[index]), self.ids[index])


def find_parquet(path: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split, in order: of the folder itself, or of the usual folders inside it.

    Files name their split (``test-00000-of-00001.parquet``) or lie in a folder that does (``test/0000.parquet``);
    those that do neither count as "all".
    """
    for name in _SUBFOLDERS:
        files = sorted((path / name).glob("*.parquet"))
        nested = sorted(file for file in (path / name).glob("*/*.parquet") if split_of_name(file.parent.name))
        splits: dict[str, list[Path]] = {}
        for file in files:
            splits.setdefault(_split_of(file.name) or "all", []).append(file)
        for file in nested:
            splits.setdefault(split_of_name(file.parent.name) or "all", []).append(file)
        if splits:
            return splits
    return {}


def open_parquet(
    path: Path, split: str, *, size: tuple[int, int] | None = None, classes: Sequence[str] | None = None
) -> ImageSource:
    """Open a Parquet file, or a folder of them.

    CIFAR-10 is recognized by its class names and the size of its images, and read at once; everything else is
    decoded on reading.

    Raises:
        WhycamError: the split or one of its files is missing, or a file is damaged or has other columns.
    """
    if path.is_file():
        split = split_of_undivided_data(split, _split_of(path.name) or "", str(path))
        files = [path]
    else:
        splits = find_parquet(path)
        if set(splits) == {"all"}:
            split, files = split_of_undivided_data(split, path.resolve().name, str(path)), splits["all"]
        else:
            split = choose_split(split, splits, str(path))
            files = splits[split]
        _check_complete(files)
    column, names = _schema(files[0])
    groups, labels, names = _rows(files, column, names)
    if len(labels) <= _IN_MEMORY and len(labels) and names in (None, CIFAR10_CLASSES):
        source = _as_cifar(files, column, labels, split, named=names is not None)
        if source is not None:
            return source
    if not groups:
        raise WhycamError(f"{path} holds no images: give a Parquet file with rows")
    if names is None:
        names = tuple(str(number) for number in range(int(labels.max()) + 1))
    if classes is not None:
        labels = match_classes(names, classes, str(path))[labels]
    lengths = ",".join(f"{file.name}:{file.stat().st_size}" for file in files)
    state = hashlib.sha256("\n".join([lengths, *(classes or names)]).encode())
    state.update(labels.astype("<i8").tobytes())
    return ParquetSource(
        name=path.resolve().name.removesuffix(".parquet"),
        split=split,
        classes=tuple(classes or names),
        ids=tuple(f"{split}/{index:05d}" for index in range(len(labels))),
        labels=labels,
        digest=state.hexdigest(),
        column=column,
        size=size,
        groups=tuple(groups),
    )


def _split_of(name: str) -> str | None:
    match = _SHARD.match(name)
    return split_of_name(match["split"]) if match else None


def _check_complete(files: list[Path]) -> None:
    """``-00000-of-00005`` says how many files there must be."""
    numbered = [match for file in files if (match := _SHARD.match(file.name)) and match["total"]]
    total = max((int(match["total"]) for match in numbered), default=0)
    missing = sorted(set(range(total)) - {int(match["number"]) for match in numbered})
    if missing:
        raise WhycamError(
            f"{files[0].parent} lacks {len(missing)} of the {total} Parquet files of this split "
            f"(number {missing[0]:05d} for one): download it"
        )


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A ParquetFile, whose errors while it is read are one sentence too."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "study", "reading Parquet files") from None
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WhycamError(
            f"{file} is truncated or damaged, or no Parquet file ({reason}): download it again"
        ) from error


def _schema(file: Path) -> tuple[str, tuple[str, ...] | None]:
    """The image column, and the class names where the file states them."""
    with _open(file) as opened:
        schema = opened.schema_arrow
    column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if column is None or _LABEL_COLUMN not in schema.names:
        raise WhycamError(
            f"{file} has the columns {', '.join(schema.names)}; whycam needs img or image, and {_LABEL_COLUMN}"
        )
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return column, tuple(str(name) for name in features[_LABEL_COLUMN]["names"])
    except (KeyError, TypeError, ValueError):
        return column, None


def _rows(
    files: list[Path], column: str, names: tuple[str, ...] | None
) -> tuple[list[_RowGroup], IndexArray, tuple[str, ...] | None]:
    """Where the images lie, and their labels; text labels become numbers in sorted order."""
    groups: list[_RowGroup] = []
    values: list[Any] = []
    start = 0
    for file in files:
        with _open(file) as opened:
            absent = {column, _LABEL_COLUMN} - set(opened.schema_arrow.names)
            if absent:
                raise WhycamError(f"{file} has no column {absent.pop()}, unlike {files[0].name}: replace it")
            values += opened.read(columns=[_LABEL_COLUMN]).column(_LABEL_COLUMN).to_pylist()
            for number in range(opened.metadata.num_row_groups):
                if count := opened.metadata.row_group(number).num_rows:
                    groups.append(_RowGroup(file, number, start))
                    start += count
    where = str(files[0])
    if values and all(type(value) is str for value in values):
        names = tuple(sorted(set(values)))
        values = [names.index(value) for value in values]
    known = 2**31 if names is None else len(names)
    wrong = next((value for value in values if type(value) is not int or not 0 <= value < known), 0)
    if wrong != 0:
        limit = "whole numbers from 0" if names is None else f"0 to {known - 1}"
        raise WhycamError(f"{where} has the label {wrong!r}; labels must be {limit}")
    return groups, np.asarray(values, dtype=np.int64), names


def _as_cifar(files: list[Path], column: str, labels: IndexArray, split: str, *, named: bool) -> ArraySource | None:
    """CIFAR-10 read whole, or None if these are other images.

    Where the file does not name the classes itself (``named``), the contents must be the official ones.
    """
    if int(labels.max()) > 9 or (not named and len(labels) % IMAGES_PER_BATCH):
        return None
    batches: list[Pixels] = []
    first: EncodedImage | None = None
    for file in files:
        with _open(file) as opened:
            for batch in opened.iter_batches(batch_size=1000, columns=[column]):
                items = [EncodedImage(_content(value, str(file)), f"{file}: an image") for value in batch.column(0)]
                first = first or items[0]
                if not batches and decode_image(first.content, first.label).shape[:2] != (32, 32):
                    return None
                batches.append(decode_batch(items, None, first).numpy())
    source = cifar_source(np.concatenate(batches), labels, split)
    return source if named or source.name == "CIFAR-10" else None


def _content(value: Any, label: str) -> bytes:
    """The encoded image of one row."""
    plain = value.as_py()
    content = plain.get("bytes") if isinstance(plain, dict) else plain
    if not isinstance(content, bytes):
        raise WhycamError(f"{label} has no image bytes in its row: whycam needs them inside the Parquet file")
    return content
