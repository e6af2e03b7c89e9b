"""The tables of a study: every column is described here once; rows are made from columns by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from whycam.cam.explanation import Explanation
from whycam.cam.maps import flags_of
from whycam.data.decode import encode_png
from whycam.data.source import IndexArray
from whycam.errors import WhycamError

SCHEMA_VERSION = 1
"""The manifest's ``format``. It rises when a column changes its meaning; a new column leaves it as it is."""


class Table:
    """A table's file and columns.

    Args:
        file: its name in the study folder; None for a table without a file of its own there.
        added: columns that earlier releases did not write; they are read as null.
        columns: name → type. Every table begins with "index", a position in the data set, and "id", its name.
    """

    def __init__(self, file: str | None, *, added: Collection[str] = (), **columns: pa.DataType) -> None:
        self.file, self._added, self._columns = file, added, columns
        self.schema = pa.schema({"index": pa.int32(), "id": pa.string(), **columns})

    def with_columns(self, **columns: pa.DataType) -> Table:
        """The table with further columns, for rows that are not in the study folder."""
        return Table(None, added=self._added, **self._columns, **columns)

    def build(self, indices: IndexArray, ids: Sequence[str], **columns: Any) -> pa.Table:
        """Make rows from columns; a single string or number is repeated for every row.

        Raises:
            KeyError: a column is missing or unknown.
        """
        values = {"index": indices, "id": list(ids), **columns}
        if values.keys() != set(self.schema.names):
            raise KeyError(f"{self.file}: the columns {sorted(values.keys() ^ set(self.schema.names))} do not match")
        return pa.table(
            [_column(values[field.name], field.type, len(indices)) for field in self.schema], schema=self.schema
        )

    def path(self, folder: Path) -> Path:
        """The table's file in a study folder."""
        assert self.file is not None
        return folder / self.file

    def read(self, place: Path, *columns: str) -> pa.Table:
        """Read some columns, by default all, from a study folder or from a Parquet file.

        Raises:
            WhycamError: the file is missing or damaged, or lacks a column.
        """
        path = self.path(place) if place.is_dir() else place
        names = columns or self.schema.names
        try:
            present = set(pq.read_schema(path).names)
            table = pq.read_table(path, columns=[name for name in names if name in present])
        except (OSError, pa.ArrowException) as error:
            raise WhycamError(f"{path}: cannot be read as Parquet; delete the study and make it again") from error
        for position, name in enumerate(names):
            if name not in present:
                if name not in self._added:
                    raise WhycamError(f"{path}: the column {name!r} is missing; delete the study and make it again")
                field = self.schema.field(name)
                table = table.add_column(position, field, pa.nulls(len(table), field.type))
        return table


def _column(values: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if isinstance(values, str | int | float):
        return pa.repeat(pa.scalar(values, kind), rows)
    return pa.array(values, type=kind, safe=False)


PREDICTIONS = Table(
    "predictions.parquet",
    label=pa.int16(),
    predicted=pa.int16(),
    correct=pa.bool_(),
    confidence=pa.float32(),  # probability of the predicted class
    margin=pa.float32(),  # probability of the predicted class minus the label's; 0 when correct
    loss=pa.float32(),  # cross-entropy in nats
    probabilities=pa.list_(pa.float32()),
    logits=pa.list_(pa.float32()),
)
IMAGES = Table(
    "images.parquet",
    height=pa.int16(),
    width=pa.int16(),
    png=pa.binary(),  # the pixels as the network saw them, lossless
)
MAPS = Table(
    "maps.parquet",
    method=pa.string(),
    layer=pa.string(),
    target=pa.string(),
    class_index=pa.int16(),
    score=pa.float32(),  # the logit that the map explains
    height=pa.int16(),
    width=pa.int16(),
    scale=pa.float32(),
    values=pa.list_(pa.float16()),  # row-major; the raw signed map is values × scale, |values| ≤ 1
    raw_min=pa.float32(),
    raw_max=pa.float32(),
    raw_sum=pa.float32(),
    negative_sum=pa.float32(),  # sum of the negative part, ≤ 0
    flags=pa.list_(pa.string()),
)
SCORES = Table(
    "scores.parquet",
    layer=pa.string(),  # "input" for the controls
    method=pa.string(),  # "noise" and "center" are the controls
    target=pa.string(),
    class_index=pa.int16(),
    before=pa.float32(),  # probability of the class on the unchanged image
    # Mean probability over the percentiles without the most (MoRF) or without the least relevant pixels (LeRF); null if
    # the map is not finite.
    morf=pa.float32(),
    lerf=pa.float32(),
    combined=pa.float32(),  # (lerf − morf) / 2
)
NEIGHBORS = Table(
    "neighbours.parquet",  # index and id are the error's
    kind=pa.string(),  # correct predictions of its "true" or its "predicted" class, or "any" image
    rank=pa.int16(),  # 1 is the nearest
    neighbour_index=pa.int32(),
    neighbour_id=pa.string(),
    similarity=pa.float32(),  # cosine of the two images' features, −1 to 1
)
CLUSTERS = Table(
    "clusters.parquet",
    cluster=pa.int16(),  # 0 is the largest
    similarity=pa.float32(),  # cosine to the cluster's center; the largest is the cluster's medoid
)
LABEL_ISSUES = Table(
    None,  # computed from predictions and neighbors
    label=pa.int16(),
    predicted=pa.int16(),
    margin=pa.float32(),  # probability of the predicted class minus the label's
    votes=pa.int16(),  # number of nearest images
    votes_predicted=pa.int16(),  # number of them that are labeled as the predicted class
    votes_label=pa.int16(),  # number of them that carry this image's label
    score=pa.float32(),  # mean of the two margins; without votes the first margin alone
    confident=pa.bool_(),  # the predicted class is at least as probable as on average on its own images
    suspect=pa.bool_(),  # confident, and more neighbors carry the predicted class than the label
)
REQUIRED = (PREDICTIONS, IMAGES, MAPS)
OPTIONAL = (NEIGHBORS, CLUSTERS, SCORES)
"""Tables that not every study has. Neighbors and clusters need features of the network's last linear layer."""


def prediction_rows(indices: IndexArray, ids: Sequence[str], labels: IndexArray, logits: Tensor) -> pa.Table:
    """One row per image of a batch; ``logits`` is (B, K)."""
    truth = torch.from_numpy(labels)
    log_probabilities = logits.cpu().double().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    confidence, predicted = probabilities.max(dim=1)
    true_probability = probabilities.gather(1, truth[:, None])[:, 0]
    return PREDICTIONS.build(
        indices,
        ids,
        label=labels,
        predicted=predicted.numpy(),
        correct=(predicted == truth).numpy(),
        confidence=confidence.numpy(),
        margin=(confidence - true_probability).numpy(),
        loss=(-log_probabilities.gather(1, truth[:, None])[:, 0]).numpy(),
        probabilities=list(probabilities.float().numpy()),
        logits=list(logits.cpu().float().numpy()),
    )


def image_rows(indices: IndexArray, ids: Sequence[str], pixels: Tensor) -> pa.Table:
    """One row per image; ``pixels`` is (B, 3, H, W) uint8."""
    height, width = pixels.shape[-2:]
    pngs = [encode_png(array) for array in pixels.permute(0, 2, 3, 1).contiguous().numpy()]
    return IMAGES.build(indices, ids, height=height, width=width, png=pngs)


def map_rows(
    indices: IndexArray, ids: Sequence[str], classes: Mapping[str, IndexArray], explained: Explanation
) -> pa.Table:
    """One row per image, method, layer and target, images outermost.

    Args:
        indices: (B,) positions in the data set.
        ids: their names.
        classes: target name → (B,) class index that it stands for.
        explained: the maps of this batch.
    """
    tables = []
    for (method, layer, target), maps in explained.maps.items():
        raw = maps.float().cpu()
        flat = raw.flatten(1)
        values, scale = stored_values(raw)
        rows = MAPS.build(
            indices,
            ids,
            method=method,
            layer=layer,
            target=target,
            class_index=classes[target],
            score=explained.scores[target].float().cpu().numpy(),
            height=raw.shape[1],
            width=raw.shape[2],
            scale=scale.numpy(),
            values=list(values.flatten(1).numpy()),
            raw_min=flat.amin(dim=1).numpy(),
            raw_max=flat.amax(dim=1).numpy(),
            raw_sum=flat.sum(dim=1).numpy(),
            negative_sum=flat.clamp(max=0).sum(dim=1).numpy(),
            flags=[list(found) for found in flags_of(raw)],
        )
        tables.append(rows)
    return images_outermost(tables)


def stored_values(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Raw maps (B, h, w) float32 as the table stores them: values (B, h, w) float16 and scale (B,) float32.

    The scale keeps float16 from overflowing and small maps from becoming zero. A map without finite extent has scale 0
    and keeps its raw values.
    """
    scale = raw.abs().nan_to_num(nan=0.0, posinf=0.0).amax(dim=(1, 2))
    return torch.where(scale[:, None, None] > 0, raw / scale[:, None, None], raw).half(), scale


def neighbor_rows(
    errors: IndexArray, found: Mapping[str, tuple[Tensor, Tensor]], ids: Callable[[IndexArray], Sequence[str]]
) -> pa.Table:
    """One row per error, kind and rank, errors outermost; an error with fewer neighbors has fewer rows.

    Args:
        errors: (E,) positions in the data set.
        found: the similarities and positions of each kind, as `whycam.study.neighbors.nearest` returns them.
        ids: names of positions in the data set.
    """
    positions = torch.cat([places for _, places in found.values()], 1).numpy()
    similarities = torch.cat([similarity for similarity, _ in found.values()], 1).numpy()
    slots = [(kind, rank) for kind, (_, places) in found.items() for rank in range(1, places.shape[1] + 1)]
    row, slot = np.nonzero(positions >= 0)
    neighbor = positions[row, slot]
    return NEIGHBORS.build(
        errors[row],
        ids(errors[row]),
        kind=[slots[s][0] for s in slot],
        rank=[slots[s][1] for s in slot],
        neighbour_index=neighbor,
        neighbour_id=list(ids(neighbor)),
        similarity=similarities[row, slot],
    )


def images_outermost(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables that hold one row for each of the same images, and sort the rows by image."""
    order = np.argsort(np.tile(np.arange(len(tables[0])), len(tables)), kind="stable")
    return pa.concat_tables(tables).take(pa.array(order))
