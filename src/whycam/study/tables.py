"""The tables of a study: every column is described here once; rows are made from columns by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from whycam.cam.explanation import Explanation
from whycam.cam.maps import flags_of
from whycam.data.decode import encode_png
from whycam.data.source import IndexArray
from whycam.study.shards import read_parquet

SCHEMA_VERSION = 1
"""The manifest's ``format``. It rises when a column changes its meaning; a new column leaves it as it is."""


@dataclass(frozen=True)
class Table:
    """A table's file and columns.

    Attributes:
        file: its name in the study folder; None for a table that is computed when it is asked for.
        schema: names and types of the columns, in order.
        added: columns that earlier releases did not write. `read` fills them with null.
    """

    file: str | None
    schema: pa.Schema
    added: frozenset[str] = frozenset()

    def build(self, columns: Mapping[str, Any]) -> pa.Table:
        """Make rows.

        Args:
            columns: values by column name. A single string or number is repeated for every row.

        Raises:
            KeyError: a column is missing or unknown.
        """
        if columns.keys() != set(self.schema.names):
            raise KeyError(f"{self.file}: the columns {sorted(columns.keys() ^ set(self.schema.names))} do not match")
        rows = len(columns[self.schema.names[0]])
        arrays = [
            pa.repeat(pa.scalar(values, field.type), rows)
            if isinstance(values, str | int | float)
            else pa.array(values, type=field.type, safe=False)
            for field in self.schema
            for values in [columns[field.name]]
        ]
        return pa.table(arrays, schema=self.schema)

    def path(self, folder: Path) -> Path:
        """The table's place in a study folder."""
        assert self.file is not None
        return folder / self.file

    def read(self, folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the table, or some of its columns, from a study folder.

        Raises:
            WhycamError: the file is missing or damaged, or lacks a column.
        """
        return read_parquet(self.path(folder), columns or self.schema.names, self.schema, self.added)


PREDICTIONS = Table(
    "predictions.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("label", pa.int16()),
            ("predicted", pa.int16()),
            ("correct", pa.bool_()),
            ("confidence", pa.float32()),  # probability of the predicted class
            ("margin", pa.float32()),  # probability of the predicted class minus the label's; 0 when correct
            ("loss", pa.float32()),  # cross-entropy in nats
            ("probabilities", pa.list_(pa.float32())),
            ("logits", pa.list_(pa.float32())),
        ]
    ),
)
IMAGES = Table(
    "images.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("height", pa.int16()),
            ("width", pa.int16()),
            ("png", pa.binary()),  # the pixels as the network saw them, lossless
        ]
    ),
)
MAPS = Table(
    "maps.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("method", pa.string()),
            ("layer", pa.string()),
            ("target", pa.string()),
            ("class_index", pa.int16()),
            ("score", pa.float32()),  # the logit that the map explains
            ("height", pa.int16()),
            ("width", pa.int16()),
            ("scale", pa.float32()),
            ("values", pa.list_(pa.float16())),  # row-major; the raw signed map is values × scale, |values| ≤ 1
            ("raw_min", pa.float32()),
            ("raw_max", pa.float32()),
            ("raw_sum", pa.float32()),
            ("negative_sum", pa.float32()),  # sum of the negative part, ≤ 0
            ("flags", pa.list_(pa.string())),
        ]
    ),
)
SCORES = Table(
    "scores.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("layer", pa.string()),  # "input" for the controls
            ("method", pa.string()),  # "noise" and "center" are the controls
            ("target", pa.string()),
            ("class_index", pa.int16()),
            ("before", pa.float32()),  # probability of the class on the unchanged image
            # Mean probability over the percentiles after the most (MoRF) and the least relevant pixels (LeRF) were
            # removed; null where the map is not finite.
            ("morf", pa.float32()),
            ("lerf", pa.float32()),
            ("combined", pa.float32()),  # (lerf − morf) / 2
        ]
    ),
)
NEIGHBORS = Table(
    "neighbours.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),  # the error
            ("kind", pa.string()),  # correct predictions of its "true" or its "predicted" class, or "any" image
            ("rank", pa.int16()),  # 1 is the nearest
            ("neighbour_index", pa.int32()),
            ("neighbour_id", pa.string()),
            ("similarity", pa.float32()),  # cosine of the two images' features, −1 to 1
        ]
    ),
)
CLUSTERS = Table(
    "clusters.parquet",
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("cluster", pa.int16()),  # 0 is the largest
            ("similarity", pa.float32()),  # cosine to the cluster's center; the largest is the cluster's medoid
        ]
    ),
)
LABEL_ISSUES = Table(
    None,
    pa.schema(
        [
            ("index", pa.int32()),
            ("id", pa.string()),
            ("label", pa.int16()),
            ("predicted", pa.int16()),
            ("margin", pa.float32()),  # probability of the predicted class minus the label's
            ("votes", pa.int16()),  # number of nearest images
            ("votes_predicted", pa.int16()),  # number of them that are labeled as the predicted class
            ("votes_label", pa.int16()),  # number of them that carry this image's label
            ("score", pa.float32()),  # mean of the two margins; without votes the first margin alone
            ("confident", pa.bool_()),  # the predicted class is at least as probable as on average on its own images
            ("suspect", pa.bool_()),  # confident, and more neighbors carry the predicted class than the label
        ]
    ),
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
        {
            "index": indices,
            "id": list(ids),
            "label": labels,
            "predicted": predicted.numpy(),
            "correct": (predicted == truth).numpy(),
            "confidence": confidence.numpy(),
            "margin": (confidence - true_probability).numpy(),
            "loss": (-log_probabilities.gather(1, truth[:, None])[:, 0]).numpy(),
            "probabilities": list(probabilities.float().numpy()),
            "logits": list(logits.cpu().float().numpy()),
        }
    )


def image_rows(indices: IndexArray, ids: Sequence[str], pixels: Tensor) -> pa.Table:
    """One row per image; ``pixels`` is (B, 3, H, W) uint8."""
    height, width = pixels.shape[-2:]
    pngs = [encode_png(array) for array in pixels.permute(0, 2, 3, 1).contiguous().numpy()]
    return IMAGES.build({"index": indices, "id": list(ids), "height": height, "width": width, "png": pngs})


def map_rows(
    indices: IndexArray, ids: Sequence[str], classes: dict[str, IndexArray], explained: Explanation
) -> pa.Table:
    """One row per image, method, layer and target, images outermost.

    Args:
        indices: (B,) positions in the data set.
        ids: their names.
        classes: target name → (B,) class index that it stands for.
        explained: the maps of this batch.
    """
    return images_outermost(
        [
            MAPS.build(
                {
                    "index": indices,
                    "id": list(ids),
                    "method": method,
                    "layer": layer,
                    "target": target,
                    "class_index": classes[target],
                    "score": explained.scores[target].float().cpu().numpy(),
                    **_map_columns(explained.maps[method, layer, target]),
                }
            )
            for method, layer, target in explained.maps
        ]
    )


def _map_columns(maps: Tensor) -> dict[str, Any]:
    """The columns that follow from the raw maps (B, h, w) alone."""
    raw = maps.float().cpu()
    flat = raw.flatten(1)
    values, scale = stored_values(raw)
    return {
        "height": raw.shape[1],
        "width": raw.shape[2],
        "scale": scale.numpy(),
        "values": list(values.flatten(1).numpy()),
        "raw_min": flat.amin(dim=1).numpy(),
        "raw_max": flat.amax(dim=1).numpy(),
        "raw_sum": flat.sum(dim=1).numpy(),
        "negative_sum": flat.clamp(max=0).sum(dim=1).numpy(),
        "flags": [list(found) for found in flags_of(raw)],
    }


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
        found: kind → similarities (E, k) and positions (E, k), −1 where there are fewer; see `neighbors.nearest`.
        ids: names of positions in the data set.
    """
    positions = torch.cat([places for _, places in found.values()], 1).numpy()
    similarities = torch.cat([similarity for similarity, _ in found.values()], 1).numpy()
    slots = [(kind, rank) for kind, (_, places) in found.items() for rank in range(1, places.shape[1] + 1)]
    row, slot = np.nonzero(positions >= 0)
    neighbor = positions[row, slot]
    return NEIGHBORS.build(
        {
            "index": errors[row],
            "id": list(ids(errors[row])),
            "kind": [slots[s][0] for s in slot],
            "rank": [slots[s][1] for s in slot],
            "neighbour_index": neighbor,
            "neighbour_id": list(ids(neighbor)),
            "similarity": similarities[row, slot],
        }
    )


def cluster_rows(indices: IndexArray, ids: Sequence[str], clusters: Tensor, similarity: Tensor) -> pa.Table:
    """One row per error."""
    return CLUSTERS.build(
        {"index": indices, "id": list(ids), "cluster": clusters.numpy(), "similarity": similarity.numpy()}
    )


def images_outermost(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables that hold one row for each of the same images, and sort the rows by image.

    Within an image the rows keep the order of the tables.
    """
    order = np.argsort(np.tile(np.arange(len(tables[0])), len(tables)), kind="stable")
    return pa.concat_tables(tables).take(pa.array(order))
