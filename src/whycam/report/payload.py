"""What the front end is given: the list of errors, the study's mean maps, and chunks of maps and images."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from whycam.cam.methods.registry import method_note
from whycam.report.color import DIVERGING, SEQUENTIAL, lookup_table
from whycam.report.columns import floats, integers, list_column, strings
from whycam.report.encoding import FLAGS, MISSING, NON_FINITE, STATS, Bytes, Floats, Indices, MapStore, quantize
from whycam.report.relations import Relations
from whycam.report.sprites import pack_images

if TYPE_CHECKING:
    from whycam.study.folder import Study

TARGETS = ("predicted", "true")
TOP_CLASSES = 8
CHUNK_BYTES = 1_500_000
"""About how much a chunk holds, so that one is unpacked within a frame or two."""
GROUPS = ("predicted", "true", "correct")
"""Mean maps: of errors predicted as a class, of errors that are of the class, of its correct predictions."""


@dataclass(frozen=True)
class Chunk:
    """Maps and images of a run of errors, ready to be written as JSON."""

    start: int
    stop: int
    content: dict[str, Any]


class Payload:
    """Everything the front end shows, taken from a study.

    Errors are listed confidently wrong first; a tie is broken by the order of the data set.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.manifest: Mapping[str, Any] = study.manifest
        self.metrics: Mapping[str, Any] = study.metrics
        self.classes: list[str] = list(self.manifest["model"]["classes"])
        self.methods: list[str] = list(self.manifest["config"]["methods"])
        self.layers: list[dict[str, Any]] = list(self.manifest["layers"])
        table = study.errors
        confidence, index = floats(table, "confidence"), integers(table, "index")
        self._order: Indices = np.lexsort((index, -confidence)).astype(np.int64)
        self.errors: Any = table.take(self._order)
        self.ids = strings(self.errors, "id")
        self.label = integers(self.errors, "label")
        self.predicted = integers(self.errors, "predicted")

    @cached_property
    def bank(self) -> MapStore:
        """The maps of the errors, in the report's order."""
        return MapStore(self.study.maps, self.ids, self.methods, self.layers, TARGETS)

    @cached_property
    def relations(self) -> Relations:
        """Neighbors, suspected labels and clusters, in the report's order."""
        return Relations(self.study, self.ids)

    @cached_property
    def map_bytes(self) -> int:
        """Bytes one error's maps take."""
        return sum(c.height * c.width + 4 * (1 + len(STATS)) + 2 for c in self.bank.combinations)

    def explained(self) -> int:
        """How many errors have at least one map."""
        rows = [c.rows >= 0 for c in self.bank.combinations]
        return int(np.any(rows, axis=0).sum()) if rows and len(self.ids) else 0

    def chunks(self) -> Iterator[Chunk]:
        """The errors in runs of about ``CHUNK_BYTES``; nothing but the current run is held in memory."""
        images = self.study.images
        start = 0
        while start < len(self.ids):
            size, stop, pictures = 0, start, []
            while stop < len(self.ids) and (size < CHUNK_BYTES or stop == start):
                png = images.get(self.ids[stop])
                if png is not None:
                    pictures.append((stop - start, png))
                    size += len(png)
                size += self.map_bytes
                stop += 1
            yield Chunk(start, stop, {
                "maps": text(self.bank.encode(slice(start, stop))),
                "sheets": [sheet.to_dict(text(sheet.webp)) for sheet in pack_images(pictures)],
            })  # fmt: skip
            start = stop

    def album(self, rank: int) -> Iterator[Chunk]:
        """Pictures of the neighbors that come in with ``rank`` (1: the nearest), in runs of about ``CHUNK_BYTES``."""
        images, ids = self.study.images, self.relations.ids
        start, end = self.relations.starts[rank - 1 : rank + 1]
        while start < end:
            size, stop, pictures = 0, start, []
            while stop < end and (size < CHUNK_BYTES or stop == start):
                png = images.get(ids[stop])
                if png is not None:
                    pictures.append((stop - start, png))
                    size += len(png)
                stop += 1
            yield Chunk(start, stop, {"sheets": [sheet.to_dict(text(sheet.webp)) for sheet in pack_images(pictures)]})
            start = stop

    def core(self) -> dict[str, Any]:
        """All but the chunks: small enough to be read before the first paint."""
        height, width = (int(side) for side in self.manifest["model"]["preprocess"]["size"])
        return {
            "classes": self.classes,
            "methods": [{"name": name, **method_note(name)} for name in self.methods],
            "layers": self.layers,
            "image": {"height": height, "width": width},
            "n": int(self.metrics["n"]),
            "data": self.manifest["data"]["name"],
            "ids": self.ids,
            "top": min(TOP_CLASSES, len(self.classes)),
            "columns": text(encode_columns(self.errors, len(self.classes))),
            "ranges": self.bank.ranges(),
            "predictedFlags": text(self._predicted_flags()),
            "means": self._means(),
            "relations": self._relations(),
            **display_constants(),
        }

    def _predicted_flags(self) -> bytes:
        """Methods × layers × errors: the flags of the predicted class's map, so that filters need no chunk."""
        return b"".join(
            self.bank.flags(c, slice(None)).tobytes() for c in self.bank.combinations if c.target == TARGETS[0]
        )

    def _relations(self) -> dict[str, Any]:
        found = self.relations.core()
        groups = ((self.bank, "predicted", self.relations.clusters),)
        means = mean_maps(groups, self.relations.cluster_count)
        return found | {"bytes": text(found["bytes"]), "means": text(means)}

    def _means(self) -> dict[str, Any]:
        """Mean raw maps per class for each of ``GROUPS``."""
        predictions = self.study.predictions
        correct = predictions.filter(predictions["correct"])
        baseline = MapStore(self.study.maps, strings(correct, "id"), self.methods, self.layers, ("predicted",))
        groups = (
            (self.bank, "predicted", self.predicted),
            (self.bank, "true", self.label),
            (baseline, "predicted", integers(correct, "label")),
        )
        return {"groups": list(GROUPS), "bytes": text(mean_maps(groups, len(self.classes)))}


def mean_maps(groups: Sequence[tuple[MapStore, str, Indices]], count: int) -> bytes:
    """Mean raw maps, in bytes that stand for values as a chunk's do.

    Maps that are not finite are left out; the counts say how many went into each mean.

    Args:
        groups: maps, the target whose maps are averaged, and for each image the number of the mean it goes into (none
            for −1).
        count: means in each group.

    Returns:
        For each group, method and layer: counts (int32), steps (float32), zeros (byte) and cells, block after block.
    """
    counts: list[Indices] = []
    steps: list[Floats] = []
    zeros: list[Bytes] = []
    cells: list[Bytes] = []
    for bank, target, group in groups:
        for c in (c for c in bank.combinations if c.target == target):
            shape = (count, c.height * c.width)
            total, n = np.zeros(shape, np.float64), np.zeros(count, np.int64)
            for start in range(0, len(c.rows), 4096):
                part = slice(start, start + 4096)
                raw = bank.raw(c, part)
                use = (c.rows[part] >= 0) & np.isfinite(raw).all(axis=1) & (group[part] >= 0)
                np.add.at(total, group[part][use], raw[use])
                np.add.at(n, group[part][use], 1)
            mean = (total / np.maximum(n, 1)[:, None]).astype(np.float32)
            quantized, step, zero = quantize(mean)
            counts.append(n)
            steps.append(step)
            zeros.append(zero)
            cells.append(quantized)
    parts = (
        *(block.astype("<i4").tobytes() for block in counts),
        *(block.astype("<f4").tobytes() for block in steps),
        *(block.tobytes() for block in zeros),
        *(block.tobytes() for block in cells),
    )
    return b"".join(parts)


def display_constants(second: str = "actual") -> dict[str, Any]:
    """What every page of this front end has to know: how bytes become values, and values colors.

    Args:
        second: what the second target is called, beside "predicted".
    """
    return {
        "targets": list(TARGETS),
        "words": {"predicted": "predicted", "true": second, "difference": "difference"},
        "stats": list(STATS),
        "flags": FLAGS,
        "missing": MISSING,
        "nonFinite": NON_FINITE,
        "palettes": {name: text(lookup_table(name).tobytes()) for name in (*SEQUENTIAL, DIVERGING)},
        "sequential": list(SEQUENTIAL),
        "diverging": DIVERGING,
    }


def encode_columns(predictions: Any, k: int) -> bytes:
    """Columns of the list of errors, of rows of ``Study.predictions`` with ``k`` classes.

    Float block (confidence, margin, loss, the top probabilities, the true class's), then int32 and uint16 blocks.
    """
    values, starts = list_column(predictions, "probabilities")
    probabilities = values[starts[:, None] + np.arange(k)].astype(np.float32).reshape(-1, k)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(TOP_CLASSES, k)]
    label, predicted = integers(predictions, "label"), integers(predictions, "predicted")
    blocks = [floats(predictions, name).astype("<f4") for name in ("confidence", "margin", "loss")]
    rows = np.arange(len(probabilities))
    blocks.append(np.take_along_axis(probabilities, best, 1).astype("<f4"))
    blocks.append(probabilities[rows, label].astype("<f4"))
    blocks.append(integers(predictions, "index").astype("<i4"))
    blocks += [array.astype("<u2") for array in (label, predicted, best)]
    return b"".join(block.tobytes() for block in blocks)


def text(data: bytes) -> str:
    """Bytes as base64."""
    return b64encode(data).decode("ascii")
