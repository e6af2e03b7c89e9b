"""A chunk's bytes read slowly by their documented layout, for the tests of all who write them."""

from __future__ import annotations

import base64
import zlib

import numpy as np

from whycam.report.encoding import STATS


def numbers_of(maps: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """Of a chunk with ``size`` maps: numbers (1 + stats, size), zeros and flags (size,), and the bytes of the cells."""
    data = zlib.decompress(base64.b64decode(maps))
    at = 4 * size * (1 + len(STATS))
    planes = np.frombuffer(data, np.uint8, at).reshape(4, -1)
    numbers = np.frombuffer(planes.T.tobytes(), "<f4").reshape(1 + len(STATS), size)
    zero, flags = np.frombuffer(data, np.uint8, 2 * size, at).reshape(2, size)
    return numbers, zero, flags, data[at + 2 * size :]


def undone(cells: bytes | np.ndarray, height: int, width: int) -> np.ndarray:
    """A map's bytes from their differences, a cell at a time."""
    out = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            beside = [int(out[place]) for place in ((y, x - 1), (y - 1, x)) if min(place) >= 0]
            out[y, x] = (int(cells[y * width + x]) + sum(beside) // max(1, len(beside))) % 256
    return out.ravel()
