"""The study's stage that compares images by their features: the nearest of every error, and clusters of errors."""

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
from whycam.study.clusters import CLUSTERS, cluster_count, cluster_rows, spherical_kmeans
from whycam.study.features import directions
from whycam.study.folder import RELATIONS, TABLES
from whycam.study.neighbors import NEIGHBORS, Block, nearest, neighbor_rows
from whycam.study.shards import read_table, write_table

FEATURES = "features"
_COLUMNS = ("index", "label", "predicted", "correct", FEATURES)


def with_features(predictions: pa.Table, features: Tensor) -> pa.Table:
    """Rows of predictions with one column more: the direction of the image's features, (D,) fp16."""
    column = pa.array(list(directions(features).numpy()), type=pa.list_(pa.float16()))
    return predictions.append_column(FEATURES, column)


def relate(parts: Sequence[Path], out: Path, ids: Callable[[IndexArray], Sequence[str]], progress: Progress) -> None:
    """Write ``clusters.parquet`` (where there are enough errors) and ``neighbours.parquet`` into ``out``.

    Args:
        parts: files of rows as ``with_features`` makes them, in the data set's order; read one at a time.
        out: the study folder.
        ids: names of positions in the data set.
        progress: told ("relate", parts done, parts in all).
    """
    if (out / RELATIONS["neighbors"]).exists():
        return
    wrong = pa.concat_tables([_wrong(part) for part in parts])
    errors, indices = _block(wrong), wrong["index"].to_numpy().astype(np.int64)
    count = cluster_count(len(indices))
    if count:
        rows = cluster_rows(indices, ids(indices), *spherical_kmeans(errors.features, count))
        write_table(out / RELATIONS["clusters"], iter([rows]), CLUSTERS)

    def blocks() -> Iterator[Block]:
        for number, part in enumerate(parts):
            progress("relate", number, len(parts))
            yield _block(read_table(part, _COLUMNS))

    predicted = torch.from_numpy(wrong["predicted"].to_numpy().astype(np.int64))
    rows = neighbor_rows(indices, nearest(errors, predicted, blocks()), ids)
    # A study begun before there were neighbors may have its pictures already, without theirs.
    (out / TABLES["images"]).unlink(missing_ok=True)
    # Last: while it is missing, the stage is not done.
    write_table(out / RELATIONS["neighbors"], iter([rows]), NEIGHBORS)
    progress("relate", len(parts), len(parts))


def shown_neighbors(out: Path) -> IndexArray:
    """Positions of all images that are some error's neighbor of its true or its predicted class, rising."""
    path = out / RELATIONS["neighbors"]
    if not path.exists():
        return np.zeros(0, np.int64)
    table = read_table(path, ("kind", "neighbour_index"))
    shown = table.filter(pc.not_equal(table["kind"], "any"))
    return np.unique(shown["neighbour_index"].to_numpy()).astype(np.int64)


def _wrong(part: Path) -> pa.Table:
    table = read_table(part, _COLUMNS)
    return table.filter(pc.invert(table["correct"]))


def _block(table: pa.Table) -> Block:
    features = np.stack(table[FEATURES].to_numpy()) if len(table) else np.zeros((0, 1), np.float16)
    return Block(
        torch.from_numpy(table["index"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["correct"].to_numpy(zero_copy_only=False)),
        # Half precision is a little off length 1.
        F.normalize(torch.from_numpy(features).float(), dim=1),
    )
