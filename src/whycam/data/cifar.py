"""CIFAR-10 (Krizhevsky 2009) in its two official forms, each as a .tar.gz or as the folder inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from whycam.data.archive import open_archive, regular_files
from whycam.data.decode import Pixels
from whycam.data.source import ArraySource, IndexArray
from whycam.data.unpickle import unpickle_batch
from whycam.errors import WhycamError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_BATCH = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32
"""Bytes per image of the binary form: the label, then the red, green and blue planes, row by row."""

BATCH_NAMES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
"""Of the official binary files."""

BATCH_BYTES = IMAGES_PER_BATCH * RECORD_BYTES
"""Bytes per file of the binary form."""
_PICKLE_BYTES = range(
    IMAGES_PER_BATCH * (RECORD_BYTES - 1), 64 * 2**20
)  # official: 31 million; Python 3 writes protocol 2 larger
_Batch = tuple[Pixels, IndexArray]


def is_binary_folder(path: Path) -> bool:
    """Whether a folder holds at least one ``.bin`` file of CIFAR-10's binary form."""
    return any((path / f"{batch}.bin").is_file() for batches in BATCH_NAMES.values() for batch in batches)


def is_python_folder(path: Path) -> bool:
    """Whether a folder holds at least one file of CIFAR-10's python form."""
    return any((path / batch).is_file() for batches in BATCH_NAMES.values() for batch in batches)


def read_folder(path: Path, split: str) -> ArraySource:
    """Read a split from the unpacked folder of either form; the binary form is preferred.

    Raises:
        WhycamError: a file of the split is missing, unreadable, truncated or foreign.
    """
    suffix, parse = (".bin", parse_binary) if is_binary_folder(path) else ("", parse_python)

    def contents() -> Iterator[tuple[str, _Batch]]:
        for batch in _batches(split, path):
            file = path / f"{batch}{suffix}"
            _check_size(file.stat().st_size if file.is_file() else -1, suffix, str(file))
            try:
                yield batch, parse(file.read_bytes(), str(file))
            except OSError as error:
                raise WhycamError(f"{file} cannot be read ({error.strerror}): check its permissions") from error

    return _assemble(contents(), split, path)


def read_archive(path: Path, split: str) -> ArraySource:
    """Read a split from the official .tar.gz of either form, without unpacking it to disk.

    Raises:
        WhycamError: the archive is truncated, damaged, unsafe, or lacks a file of the split.
    """
    wanted = _batches(split, path)

    def contents() -> Iterator[tuple[str, _Batch]]:
        with open_archive(path) as tar:
            for member in regular_files(tar, path):
                inside = PurePosixPath(member.name)
                if inside.stem in wanted and inside.suffix in (".bin", ""):
                    label = f"{path}: {inside}"
                    _check_size(member.size, inside.suffix, label)
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    parse = parse_binary if inside.suffix else parse_python
                    yield inside.stem, parse(content.read(), label)

    return _assemble(contents(), split, path)


def parse_binary(data: bytes, name: str) -> _Batch:
    """Take a binary file apart: (N, 3, 32, 32) uint8 pixels and (N,) labels."""
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    return records[:, 1:].reshape(-1, 3, 32, 32), _checked(records[:, 0].astype(np.int64), name)


def parse_python(data: bytes, name: str) -> _Batch:
    """Take a python file apart: (N, 3, 32, 32) uint8 pixels and (N,) labels."""
    batch = unpickle_batch(data, name)
    if "fine_labels" in batch:
        raise WhycamError(f"{name} is CIFAR-100, which is not supported here: give CIFAR-10 or an image folder")
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (IMAGES_PER_BATCH, RECORD_BYTES - 1):
        raise WhycamError(f"{name} holds no {IMAGES_PER_BATCH:,} images of 32×32 pixels: download the official archive")
    if (
        not isinstance(labels, list)
        or len(labels) != IMAGES_PER_BATCH
        or not all(type(label) is int for label in labels)
    ):
        raise WhycamError(f"{name} holds no {IMAGES_PER_BATCH:,} labels: download the official archive")
    smallest, largest = min(labels), max(labels)
    if not 0 <= smallest <= largest <= 9:
        raise _bad_labels(name, smallest, largest)
    return pixels.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def official_order(images: Pixels, labels: IndexArray) -> tuple[Pixels, IndexArray, bool]:
    """Recognize the official contents, and put the five training batches into their order where they are not.

    Copies of CIFAR-10 in other layouts keep the order inside a batch, but not always that of the batches.

    Returns:
        The images, the labels, and whether they are exactly those of the official files (by SHA-256).
    """
    names = {digest: name for name, digest in SHA256.items()}
    found: list[str] = []
    for start in range(0, len(labels), IMAGES_PER_BATCH):
        part = slice(start, start + IMAGES_PER_BATCH)
        records = np.concatenate(
            [labels[part, None].astype(np.uint8), images[part].reshape(len(labels[part]), -1)], axis=1
        )
        name = names.get(hashlib.sha256(records.data).hexdigest())
        if name is None:
            return images, labels, False
        found.append(name)
    if sorted(found) not in [[f"{batch}.bin" for batch in batches] for batches in BATCH_NAMES.values()]:
        return images, labels, False
    if found != sorted(found):
        order = np.concatenate(
            [np.arange(IMAGES_PER_BATCH) + IMAGES_PER_BATCH * found.index(name) for name in sorted(found)]
        )
        images, labels = images[order], labels[order]
    return images, labels, True


def cifar_source(images: Pixels, labels: IndexArray, split: str) -> ArraySource:
    """Name and number the images of a split; contents other than the official ones do not pass for CIFAR-10."""
    images, labels, official = official_order(images, labels)
    return ArraySource(
        images=images,
        labels=labels,
        classes=CIFAR10_CLASSES,
        ids=tuple(f"{split}/{index:05d}" for index in range(len(labels))),
        name="CIFAR-10" if official else "CIFAR-10 (other contents than the official files)",
        split=split,
    )


def _assemble(contents: Iterable[tuple[str, _Batch]], split: str, path: Path) -> ArraySource:
    wanted = _batches(split, path)
    images: Pixels = np.empty((len(wanted) * IMAGES_PER_BATCH, 3, 32, 32), np.uint8)
    labels: IndexArray = np.empty(len(wanted) * IMAGES_PER_BATCH, np.int64)
    missing = list(wanted)
    for name, (pixels, numbers) in contents:
        if name not in missing:
            raise WhycamError(f"{path} holds {name} twice: download the official archive")
        missing.remove(name)
        part = slice(wanted.index(name) * IMAGES_PER_BATCH, (wanted.index(name) + 1) * IMAGES_PER_BATCH)
        images[part], labels[part] = pixels, numbers
    if len(missing) == len(wanted):
        raise WhycamError(f"{path} holds no {missing[0]} of CIFAR-10, neither as .bin nor as pickle: give another path")
    if missing:
        raise WhycamError(f"{path} lacks {', '.join(missing)}: download the official archive again")
    return cifar_source(images, labels, split)


def _batches(split: str, path: Path) -> tuple[str, ...]:
    if split not in BATCH_NAMES:
        raise WhycamError(f"{path} is CIFAR-10, which has the splits train and test, not {split!r}")
    return BATCH_NAMES[split]


def _check_size(size: int, suffix: str, name: str) -> None:
    """Sizes are exact, so a wrong one is noticed before anything is read."""
    if size < 0:
        raise WhycamError(f"{name} is missing: download the official archive again")
    if suffix and size != BATCH_BYTES:
        raise WhycamError(
            f"{name} has {size:,} bytes instead of {BATCH_BYTES:,}: it is truncated or foreign, download it again"
        )
    if not suffix and size not in _PICKLE_BYTES:
        raise WhycamError(
            f"{name} has {size:,} bytes instead of about 31 million: it is truncated or foreign, download it again"
        )


def _checked(labels: IndexArray, name: str) -> IndexArray:
    if int(labels.max()) > 9:
        raise _bad_labels(name, int(labels.min()), int(labels.max()))
    return labels


def _bad_labels(name: str, smallest: int, largest: int) -> WhycamError:
    return WhycamError(
        f"{name} has labels from {smallest} to {largest} instead of 0 to 9: it is no CIFAR-10 batch, or damaged"
    )
