"""The data of the front end: the list of errors, mean maps, and chunks of maps and images."""

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
from whycam.report.encoding import FLAGS, MISSING, NON_FINITE, STATS, Indices, MapStore, quantize
from whycam.report.relations import Relations
from whycam.report.sprites import pack_images

if TYPE_CHECKING:
    from whycam.study.folder import Study

TARGETS = ("predicted", "true")
TOP_CLASSES = 8
CHUNK_BYTES = 1_500_000
"""Bytes in a chunk, about: so few that the page unpacks one within two frames."""
GROUPS = ("predicted", "true", "correct")
"""Mean maps of a class: over the errors predicted as it, the errors labeled as it, and its correct predictions."""


@dataclass(frozen=True)
class Chunk:
    """Maps and images of consecutive errors, ready to be written as JSON."""

    start: int
    stop: int
    content: dict[str, Any]


class Payload:
    """Everything that figures and report show, taken from a study. Build one and hand it to both.

    Errors are listed by descending confidence; ties keep the data set's order.

    Attributes:
        study: the study.
        manifest: its manifest.
        metrics: its metrics.
        classes: class names.
        methods: method names.
        layers: names and map sizes, from the manifest.
        errors: rows of ``Study.errors`` in the report's order.
        ids: their ids.
        label: (E,) their labels.
        predicted: (E,) their predicted classes.
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
        self.errors: Any = table.take(np.lexsort((index, -confidence)).astype(np.int64))
        self.ids = strings(self.errors, "id")
        self.label = integers(self.errors, "label")
        self.predicted = integers(self.errors, "predicted")

    @property
    def method_notes(self) -> list[dict[str, Any]]:
        """Name, title and description of each method."""
        return [{"name": name, **method_note(name)} for name in self.methods]

    @cached_property
    def maps(self) -> MapStore:
        """The maps of the errors, in the report's order."""
        return MapStore(self.study.maps, self.ids, self.methods, self.layers, TARGETS)

    @cached_property
    def relations(self) -> Relations:
        """Neighbors, label issues and clusters, in the report's order."""
        return Relations(self.study, self.ids)

    def explained(self) -> int:
        """The number of errors that have at least one map."""
        rows = [c.rows >= 0 for c in self.maps.combinations]
        return int(np.any(rows, axis=0).sum()) if rows and len(self.ids) else 0

    def chunks(self) -> Iterator[Chunk]:
        """Maps and images of the errors, in chunks of about ``CHUNK_BYTES``; one chunk is in memory at a time."""
        map_bytes = sum(c.height * c.width + 4 * (1 + len(STATS)) + 2 for c in self.maps.combinations)
        for start, stop, sheets in self._sheets(self.ids, 0, len(self.ids), map_bytes):
            yield Chunk(start, stop, {"maps": text(self.maps.encode(slice(start, stop))), "sheets": sheets})

    def neighbor_images(self, rank: int) -> Iterator[Chunk]:
        """Images of the neighbors that are of ``rank`` (1: the nearest) and of no lower one, in chunks."""
        first, end = self.relations.starts[rank - 1 : rank + 1]
        for start, stop, sheets in self._sheets(self.relations.ids, first, end, 0):
            yield Chunk(start, stop, {"sheets": sheets})

    def _sheets(
        self, ids: Sequence[str], first: int, end: int, extra: int
    ) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
        """(start, stop, sheets) of consecutive ids whose images, and ``extra`` bytes each, fill a chunk."""
        images, start = self.study.images, first
        while start < end:
            size, stop, pictures = 0, start, []
            while stop < end and (size < CHUNK_BYTES or stop == start):
                png = images.get(ids[stop])
                if png is not None:
                    pictures.append((stop - start, png))
                    size += len(png)
                size += extra
                stop += 1
            yield start, stop, [sheet.to_dict(text(sheet.webp)) for sheet in pack_images(pictures)]
            start = stop

    def core(self) -> dict[str, Any]:
        """The data block that every section reads; sections add entries of their own."""
        flags = [self.maps.flags(c, slice(None)) for c in self.maps.combinations if c.target == TARGETS[0]]
        return page_core(
            self.classes, self.method_notes, self.layers, size=self.manifest["model"]["preprocess"]["size"],
            n=int(self.metrics["n"]), data=self.manifest["data"]["name"], ids=self.ids, predictions=self.errors,
            ranges=self.maps.ranges(), flags=b"".join(found.tobytes() for found in flags),
        )  # fmt: skip

    def relations_data(self) -> dict[str, Any]:
        """Neighbors, label issues and clusters with their mean maps, for the data block."""
        found = self.relations.data()
        groups = ((self.maps, "predicted", self.relations.clusters),)
        means = mean_maps(groups, self.relations.cluster_count)
        return found | {"bytes": text(found["bytes"]), "means": text(means)}

    def means_data(self) -> dict[str, Any]:
        """Mean raw maps per class for each of ``GROUPS``, for the data block."""
        predictions = self.study.predictions
        correct = predictions.filter(predictions["correct"])
        baseline = MapStore(self.study.maps, strings(correct, "id"), self.methods, self.layers, ("predicted",))
        groups = (
            (self.maps, "predicted", self.predicted),
            (self.maps, "true", self.label),
            (baseline, "predicted", integers(correct, "label")),
        )
        return {"groups": list(GROUPS), "bytes": text(mean_maps(groups, len(self.classes)))}


def page_core(
    classes: Sequence[str], methods: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]],
    *, size: Sequence[int], n: int, data: str, ids: Sequence[str], predictions: Any, ranges: Mapping[str, Any],
    flags: bytes, second: str = "actual",
) -> dict[str, Any]:  # fmt: skip
    """The data block that every page of this front end has, small enough to be read before the first paint.

    Args:
        classes: class names.
        methods: name, title and description of each method.
        layers: name, height and width of each layer's maps.
        size: (height, width) of the network's input in pixels.
        n: number of images in the data set ``data``.
        data: its name.
        ids: of the listed images.
        predictions: their rows of ``Study.predictions``.
        ranges: the display ranges of their maps, see `MapStore.ranges`.
        flags: methods × layers × images: the flags of the predicted class's map, so that filters need no chunk.
        second: the word for the second target, beside "predicted".
    """
    return {
        "classes": list(classes),
        "methods": list(methods),
        "layers": list(layers),
        "image": {"height": int(size[0]), "width": int(size[1])},
        "n": n,
        "data": data,
        "ids": list(ids),
        "top": min(TOP_CLASSES, len(classes)),
        "columns": text(encode_columns(predictions, len(classes))),
        "ranges": ranges,
        "predictedFlags": text(flags),
        **display_constants(second),
    }


def mean_maps(groups: Sequence[tuple[MapStore, str, Indices]], count: int) -> bytes:
    """Mean raw maps as bytes, quantized like the maps of a chunk.

    Maps that are not finite are left out; the counts are the numbers of maps in each mean.

    Args:
        groups: maps, the target whose maps are averaged, and for each image the number of its mean (−1 for none).
        count: number of means in each group.

    Returns:
        For each group, method and layer: counts (int32), steps (float32), zeros (byte) and cells, block after block.
    """
    blocks = []
    for maps, target, group in groups:
        for c in (c for c in maps.combinations if c.target == target):
            total, n = np.zeros((count, c.height * c.width), np.float64), np.zeros(count, np.int64)
            for start in range(0, len(c.rows), 4096):
                part = slice(start, start + 4096)
                raw = maps.raw(c, part)
                use = (c.rows[part] >= 0) & np.isfinite(raw).all(axis=1) & (group[part] >= 0)
                np.add.at(total, group[part][use], raw[use])
                np.add.at(n, group[part][use], 1)
            cells, step, zero = quantize((total / np.maximum(n, 1)[:, None]).astype(np.float32))
            blocks.append((n.astype("<i4"), step.astype("<f4"), zero, cells))
    return b"".join(block.tobytes() for kind in zip(*blocks, strict=True) for block in kind)


def display_constants(second: str = "actual") -> dict[str, Any]:
    """What the pages need to turn bytes into values, and values into colors.

    Args:
        second: the word for the second target, beside "predicted".
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
    """The columns of the list of errors as bytes, from rows of ``Study.predictions`` with ``k`` classes.

    A float32 block (confidence, margin, loss, top probabilities, probability of the true class), then an int32 block
    (index) and a uint16 block (label, predicted, top classes).
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
