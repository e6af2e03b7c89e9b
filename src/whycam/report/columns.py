"""Arrow columns as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def strings(table: Any, name: str) -> list[str]:
    """A string column as a list."""
    column: list[str] = table[name].to_pylist()
    return column


def floats(table: Any, name: str) -> npt.NDArray[np.float32]:
    """A number column as (N,) float32, null as NaN."""
    column: npt.NDArray[np.float32] = table[name].to_numpy(zero_copy_only=False).astype(np.float32)
    return column


def integers(table: Any, name: str) -> npt.NDArray[np.int64]:
    """A whole-number column as (N,) int64."""
    column: npt.NDArray[np.int64] = table[name].to_numpy().astype(np.int64)
    return column


def list_column(table: Any, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A list column as flat values, and the position of each row's first value in them."""
    values, starts, offset = [], [np.zeros(0, np.int64)], 0
    for chunk in table[name].chunks:
        offsets = chunk.offsets.to_numpy().astype(np.int64)
        values.append(chunk.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]])
        starts.append(offsets[:-1] - offsets[0] + offset)
        offset += int(offsets[-1] - offsets[0])
    return (np.concatenate(values) if values else np.zeros(0, np.float32)), np.concatenate(starts)
