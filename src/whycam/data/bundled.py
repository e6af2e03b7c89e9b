"""The thousand CIFAR-10 test images that come with whycam."""

from __future__ import annotations

import hashlib
import io
import json
from importlib.resources import files
from typing import Any

import numpy as np

from whycam.data.cifar import CIFAR10_CLASSES
from whycam.data.decode import Pixels, decode_image
from whycam.data.source import ArraySource, IndexArray
from whycam.errors import WhycamError

NAME = "CIFAR-10 (bundled 1,000)"
PER_CLASS = 100
COLUMNS = 40
"""Tiles in a row of the mosaic."""


def choose_indices(labels: IndexArray, seed: int) -> IndexArray:
    """Draw ``PER_CLASS`` images of each class: those whose SHA-256 of "seed/index" comes first.

    A hash rather than a random generator, so that everyone draws the same images for ever.

    Args:
        labels: (N,) labels of the test set.
        seed: any whole number.

    Returns:
        (PER_CLASS × 10,) int64 indices, ascending.
    """
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"{seed}/{index}".encode()).digest())
    ordered = labels[order]
    chosen = [np.asarray(order)[ordered == number][:PER_CLASS] for number in range(len(CIFAR10_CLASSES))]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def to_mosaic(images: Pixels) -> Pixels:
    """Lay (N, 3, 32, 32) images out as tiles, row by row: (N / COLUMNS × 32, COLUMNS × 32, 3)."""
    tiles = images.reshape(-1, COLUMNS, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(tiles.reshape(-1, COLUMNS * 32, 3))


def from_mosaic(mosaic: Pixels) -> Pixels:
    """Cut a mosaic into its tiles again: (N, 3, 32, 32)."""
    tiles = mosaic.reshape(-1, 32, COLUMNS, 32, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(-1, 3, 32, 32))


def bundled_source(split: str = "test") -> ArraySource:
    """1,000 test images, 100 of each class, with the ids they have in the official test set.

    Raises:
        WhycamError: another split than "test" is asked for, or the files of the installation are damaged.
    """
    if split not in ("test", "all"):
        raise WhycamError(
            f"the bundled images are test images, there is no split {split!r} of them: "
            "download CIFAR-10 (whycam data DIR)"
        )
    folder = files("whycam") / "assets" / "cifar10-1000"
    damaged = "the bundled images are missing or damaged: install whycam again"
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        mosaic = (folder / "images.webp").read_bytes()
    except (OSError, ValueError) as error:
        raise WhycamError(damaged) from error
    source = ArraySource(
        images=from_mosaic(decode_image(mosaic, "the bundled images")),
        labels=np.asarray(index["labels"], dtype=np.int64),
        classes=CIFAR10_CLASSES,
        ids=tuple(f"test/{number:05d}" for number in index["indices"]),
        name=NAME,
        split="test",
    )
    if source.digest != index["digest"]:
        raise WhycamError(damaged)
    return source


def write_bundle(images: Pixels, labels: IndexArray, seed: int) -> tuple[bytes, str]:
    """The two files of the bundled set, from the official test set: a lossless WebP mosaic and its JSON index."""
    from PIL import Image

    indices = choose_indices(labels, seed)
    chosen = images[indices]
    source = ArraySource(
        images=chosen,
        labels=labels[indices],
        classes=CIFAR10_CLASSES,
        ids=tuple(f"test/{number:05d}" for number in indices),
        name=NAME,
        split="test",
    )
    buffer = io.BytesIO()
    Image.fromarray(to_mosaic(chosen)).save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
    index = {
        "source": "CIFAR-10 test set (Krizhevsky, Learning multiple layers of features from tiny images, 2009)",
        "layout": f"tiles of 32×32 pixels, {COLUMNS} in a row, row by row",
        "seed": seed,
        "drawn": f"per class the {PER_CLASS} test images whose SHA-256 of '{seed}/index' comes first",
        "digest": source.digest,
        "indices": indices.tolist(),
        "labels": labels[indices].tolist(),
    }
    return buffer.getvalue(), json.dumps(index, ensure_ascii=False) + "\n"
