"""Raw maps as bytes for the browser: one unsigned byte a cell, and each map's step and zero.

A cell's value is ``(byte − zero) × step``; byte 255 marks a value that is not finite. Step and zero are chosen for each
map so that its range, extended to include 0, fills the other 255 levels. Zero evidence is therefore exactly zero in the
browser, and every other value is off by at most one step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whycam.errors import WhycamError
from whycam.report.columns import list_column, strings

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

NON_FINITE = 255
TOP = 254
FLAGS = {"all-zero": 1, "negative-only": 2, "constant": 4, "non-finite": 8, "coarse": 16}
MISSING = 128
STATS = ("score", "raw_min", "raw_max", "raw_sum", "negative_sum")


def quantize(raw: Floats) -> tuple[Bytes, Floats, Bytes]:
    """Quantize raw maps.

    Args:
        raw: (N, cells) signed values; NaN and infinities are allowed.

    Returns:
        cells (N, cells) uint8, step (N,) float32 above zero, zero (N,) uint8.
    """
    finite = np.isfinite(raw)
    known = np.where(finite, raw, 0.0).astype(np.float64)
    low = np.minimum(known.min(axis=1, initial=0.0), 0.0)
    high = np.maximum(known.max(axis=1, initial=0.0), 0.0)
    step = (high - low) / TOP
    # A range below float32's smallest normal number would give a step of zero; such a map is shown as zero.
    step = np.where(step < np.finfo(np.float32).tiny, 1.0, step).astype(np.float32).astype(np.float64)
    zero = np.rint(-low / step).clip(0, TOP)
    cells = (np.rint(known / step[:, None]) + zero[:, None]).clip(0, TOP)
    cells[~finite] = NON_FINITE
    return cells.astype(np.uint8), step.astype(np.float32), zero.astype(np.uint8)


def dequantize(cells: Bytes, step: Floats, zero: Bytes) -> Floats:
    """The values that the browser computes: (N, cells) float32, NaN where the byte is 255."""
    values = (cells.astype(np.float32) - zero.astype(np.float32)[:, None]) * step[:, None]
    values[cells == NON_FINITE] = np.nan
    return values


def differences(cells: Bytes) -> Bytes:
    """Subtract from each cell of (N, h, w) bytes the mean, rounded down, of its left and upper neighbor, modulo 256.

    In the first row and column the only neighbor replaces the mean, in the corner 0 does. Neighboring cells are alike,
    so the differences are small and compress better. This is PNG's "average" filter (ISO/IEC 15948, 9.2).
    """
    wide = cells.astype(np.int16)
    guess = np.zeros_like(wide)
    guess[:, 1:, 1:] = (wide[:, :-1, 1:] + wide[:, 1:, :-1]) // 2
    guess[:, 0, 1:], guess[:, 1:, 0] = wide[:, 0, :-1], wide[:, :-1, 0]
    return (wide - guess).astype(np.uint8)


@dataclass(frozen=True)
class Combination:
    """The maps of one method, layer and target.

    Attributes:
        method: the method's name.
        layer: the layer's name.
        target: the target's name.
        height: of the maps, in cells.
        width: of the maps, in cells.
        rows: for each image in the order given to `MapStore`, its row in the study's table, or −1.
    """

    method: str
    layer: str
    target: str
    height: int
    width: int
    rows: Indices


class MapStore:
    """The maps of a study, found by method, layer, target and image.

    Args:
        table: ``Study.maps``.
        ids: image ids in the report's order.
        methods: method names in the report's order.
        layers: the manifest's layers (name, height, width).
        targets: target names in the report's order.

    Raises:
        WhycamError: a map's shape differs from its layer's in the manifest.
    """

    def __init__(
        self,
        table: Any,
        ids: Sequence[str],
        methods: Sequence[str],
        layers: Sequence[dict[str, Any]],
        targets: Sequence[str],
    ) -> None:
        self._values, self._starts = list_column(table, "values")
        self._scale: Floats = table["scale"].to_numpy().astype(np.float32)
        self._stats = {name: table[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in STATS}
        flags = table["flags"].to_pylist()
        self._flags: Bytes = np.array([sum(FLAGS.get(flag, 0) for flag in row or ()) for row in flags], np.uint8)
        self.combinations = [
            Combination(method, layer["name"], target, int(layer["height"]), int(layer["width"]), rows)
            for method, layer, target, rows in _locate(table, ids, methods, layers, targets)
        ]
        shapes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
        for c in self.combinations:
            present = c.rows[c.rows >= 0]
            foreign = present[(shapes[present] != (c.height, c.width)).any(axis=1)]
            if len(foreign):
                height, width = shapes[foreign[0]]
                raise WhycamError(
                    f"maps.parquet: the {c.method} map of {table['id'][int(foreign[0])].as_py()!r} at {c.layer} is "
                    f"{height}×{width}, but manifest.json says {c.height}×{c.width}: run the study again"
                )

    def raw(self, combination: Combination, where: slice | Indices) -> Floats:
        """Raw values (n, cells) float32 of the images at ``where``; a missing map is zeros."""
        rows = combination.rows[where]
        cells = combination.height * combination.width
        out = np.zeros((len(rows), cells), np.float32)
        present = rows >= 0
        index = self._starts[rows[present], None] + np.arange(cells)
        # A map without finite extent has scale 0 and is stored unscaled.
        scale = self._scale[rows[present], None]
        out[present] = self._values[index].astype(np.float32) * np.where(scale > 0, scale, np.float32(1))
        return out

    def stats(self, combination: Combination, where: slice | Indices) -> dict[str, Floats]:
        """Each of ``STATS`` as (n,) for the images at ``where``; NaN for a missing map."""
        rows = combination.rows[where]
        return {
            name: np.where(rows >= 0, values[rows], np.float32(np.nan)) if len(values) else _nan(len(rows))
            for name, values in self._stats.items()
        }

    def flags(self, combination: Combination, where: slice | Indices) -> Bytes:
        """The flags (n,) of the maps at ``where`` as bits of ``FLAGS``; ``MISSING`` for a missing map."""
        rows = combination.rows[where]
        if not len(self._flags):
            return np.full(len(rows), MISSING, np.uint8)
        return np.where(rows >= 0, self._flags[rows], np.uint8(MISSING)).astype(np.uint8)

    def encode(self, where: slice | Indices) -> bytes:
        """The maps of a chunk, compressed by zlib: float block, byte block, cells, each by combination, then image.

        Float block: for step and each of ``STATS``, combinations × n float32 (little endian), in four planes: all first
        bytes, all second bytes and so on. Byte block: zero and flags, combinations × n each. Cells: combinations × n ×
        height·width, as ``differences``.
        """
        floats: list[list[Floats]] = [[] for _ in range(1 + len(STATS))]
        small: list[list[Bytes]] = [[], []]
        cells: list[Bytes] = []
        for c in self.combinations:
            quantized, step, zero = quantize(self.raw(c, where))
            stats = self.stats(c, where)
            for block, values in zip(floats, [step, *(stats[name] for name in STATS)], strict=True):
                block.append(values)
            small[0].append(zero)
            small[1].append(self.flags(c, where))
            cells.append(differences(quantized.reshape(-1, c.height, c.width)))
        numbers = [np.concatenate(block).astype("<f4").tobytes() for block in floats if block]
        planes = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, 4).T.tobytes()
        parts = [np.concatenate(block).tobytes() for block in small if block]
        return zlib.compress(b"".join([planes, *parts, *(block.tobytes() for block in cells)]), 9)

    def ranges(self) -> dict[str, dict[str, dict[str, float]]]:
        """Method → layer → display ranges that hold 98% of the maps.

        "positive" is the 98% quantile of the maps' largest values, "signed" that of their largest absolute values.
        """
        found: dict[str, dict[str, list[tuple[Floats, Floats]]]] = {}
        for c in self.combinations:
            stats = self.stats(c, slice(None))
            highest, lowest = stats["raw_max"], stats["raw_min"]
            finite = np.isfinite(highest) & np.isfinite(lowest)
            pair = (np.maximum(highest[finite], 0), np.maximum(np.abs(highest[finite]), np.abs(lowest[finite])))
            found.setdefault(c.method, {}).setdefault(c.layer, []).append(pair)
        return {
            method: {
                layer: {
                    name: _quantile(np.concatenate([pair[i] for pair in pairs]))
                    for i, name in enumerate(("positive", "signed"))
                }
                for layer, pairs in layers.items()
            }
            for method, layers in found.items()
        }


def _nan(n: int) -> Floats:
    return np.full(n, np.nan, np.float32)


def _quantile(values: Floats) -> float:
    return float(np.quantile(values, 0.98)) if len(values) else 0.0


def _locate(
    table: Any,
    ids: Sequence[str],
    methods: Sequence[str],
    layers: Sequence[dict[str, Any]],
    targets: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any], str, Indices]]:
    position = {name: i for i, name in enumerate(ids)}
    keys = zip(strings(table, "method"), strings(table, "layer"), strings(table, "target"), strict=True)
    found: dict[tuple[str, str, str], Indices] = {}
    for row, (key, image) in enumerate(zip(keys, strings(table, "id"), strict=True)):
        if image in position:
            if key not in found:
                found[key] = np.full(len(ids), -1, np.int64)
            found[key][position[image]] = row
    no_rows = np.full(len(ids), -1, np.int64)
    for method in methods:
        for layer in layers:
            for target in targets:
                yield method, layer, target, found.get((method, layer["name"], target), no_rows)
