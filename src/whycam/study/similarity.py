"""The study's stage that compares images by their features: the neighbors of every error, and clusters of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.data.source import IndexArray
from whycam.progress import Progress
from whycam.study.clusters import cluster_count, cluster_features
from whycam.study.features import directions
from whycam.study.neighbors import Block, nearest
from whycam.study.shards import parquet_writer
from whycam.study.tables import CLUSTERS, NEIGHBORS, PREDICTIONS, neighbor_rows

FORWARD = PREDICTIONS.with_columns(features=pa.list_(pa.float16()))
"""The rows that this stage reads from shards: predictions, and the direction of each image's features."""
_COLUMNS = ("index", "label", "predicted", "correct", "features")


def with_features(predictions: pa.Table, features: Tensor) -> pa.Table:
    """Add to rows of predictions the direction of each image's features, (D,) float16."""
    field = FORWARD.schema.field("features")
    return predictions.append_column(field, pa.array(list(directions(features).numpy()), type=field.type))


def write_neighbors(
    shards: Sequence[Path], out: Path, ids: Callable[[IndexArray], Sequence[str]], progress: Progress
) -> None:
    """Write ``neighbours.parquet`` and, if there are enough errors, ``clusters.parquet`` into ``out``.

    Args:
        shards: files of rows as ``with_features`` makes them, in the data set's order; one is in memory at a time.
        out: the study folder.
        ids: names of positions in the data set.
        progress: told ("neighbors", shards done, all shards).
    """
    if NEIGHBORS.path(out).exists():
        return
    wrong = pa.concat_tables([_errors(shard) for shard in shards])
    errors, indices = _block(wrong), wrong["index"].to_numpy().astype(np.int64)
    count = cluster_count(len(indices))
    if count:
        cluster, similarity = cluster_features(errors.features, count)
        rows = CLUSTERS.build(indices, ids(indices), cluster=cluster.numpy(), similarity=similarity.numpy())
        with parquet_writer(CLUSTERS.path(out), CLUSTERS) as writer:
            writer.write_table(rows)

    def blocks() -> Iterator[Block]:
        for number, shard in enumerate(shards):
            progress("neighbors", number, len(shards))
            yield _block(FORWARD.read(shard, *_COLUMNS))

    predicted = torch.from_numpy(wrong["predicted"].to_numpy().astype(np.int64))
    rows = neighbor_rows(indices, nearest(errors, predicted, blocks()), ids)
    # Written last: the stage is done when this file exists.
    with parquet_writer(NEIGHBORS.path(out), NEIGHBORS) as writer:
        writer.write_table(rows)
    progress("neighbors", len(shards), len(shards))


def shown_neighbors(out: Path) -> IndexArray:
    """Positions of all images that are a neighbor of an error's true or predicted class, ascending."""
    if not NEIGHBORS.path(out).exists():
        return np.zeros(0, np.int64)
    table = NEIGHBORS.read(out, "kind", "neighbour_index")
    shown = table.filter(pc.not_equal(table["kind"], "any"))
    return np.unique(shown["neighbour_index"].to_numpy()).astype(np.int64)


def _errors(shard: Path) -> pa.Table:
    table = FORWARD.read(shard, *_COLUMNS)
    return table.filter(pc.invert(table["correct"]))


def _block(table: pa.Table) -> Block:
    features = np.stack(table["features"].to_numpy()) if len(table) else np.zeros((0, 1), np.float16)
    return Block(
        torch.from_numpy(table["index"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["correct"].to_numpy(zero_copy_only=False)),
        # Half precision is not exactly of length 1.
        F.normalize(torch.from_numpy(features).float(), dim=1),
    )
