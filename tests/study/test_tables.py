"""The schema: rows are made and read by column name."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from whycam import WhycamError
from whycam.study.tables import (
    CLUSTERS,
    IMAGES,
    LABEL_ISSUES,
    MAPS,
    NEIGHBORS,
    OPTIONAL,
    PREDICTIONS,
    REQUIRED,
    SCORES,
    Table,
    stored_values,
)

ROWS = CLUSTERS.build([7, 8], ["a", "b"], similarity=[0.5, 0.25], cluster=3)


def test_rows_follow_the_schema_whatever_the_order_of_the_columns():
    assert ROWS.schema.equals(CLUSTERS.schema)
    assert ROWS.to_pylist() == [
        {"index": 7, "id": "a", "cluster": 3, "similarity": 0.5},
        {"index": 8, "id": "b", "cluster": 3, "similarity": 0.25},
    ]


@pytest.mark.parametrize("columns", [{"similarity": 1.0, "cluster": 1, "size": 1}, {"cluster": 1}])
def test_missing_and_unknown_columns_are_refused(columns):
    with pytest.raises(KeyError, match=r"clusters\.parquet: the columns .* do not match"):
        CLUSTERS.build([1], ["a"], **columns)


def test_a_table_is_read_by_name(tmp_path):
    shuffled = ROWS.select(["similarity", "id", "cluster", "index"])
    pq.write_table(shuffled.append_column("later", pa.array([1, 2])), tmp_path / "clusters.parquet")
    assert CLUSTERS.read(tmp_path).equals(ROWS)
    assert CLUSTERS.read(tmp_path, "cluster", "index").column_names == ["cluster", "index"]


def test_a_column_that_older_folders_lack_is_null(tmp_path):
    pq.write_table(ROWS, tmp_path / "clusters.parquet")
    columns = {"cluster": pa.int16(), "size": pa.int32(), "similarity": pa.float32()}
    with pytest.raises(WhycamError, match="the column 'size' is missing; delete the study and make it again"):
        Table("clusters.parquet", **columns).read(tmp_path)
    table = Table("clusters.parquet", added=["size"], **columns)
    rows = table.read(tmp_path)
    assert rows.schema.equals(table.schema)
    assert rows["size"].to_pylist() == [None, None]
    assert rows.drop_columns("size").equals(ROWS)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "clusters.parquet").write_bytes(b"no table")
    with pytest.raises(WhycamError, match=r"clusters\.parquet: cannot be read as Parquet; delete the study"):
        CLUSTERS.read(tmp_path)


def test_files_and_columns_keep_their_names():
    """Folders are read by other programs and other releases."""
    assert [table.file for table in (*REQUIRED, *OPTIONAL)] == [
        "predictions.parquet", "images.parquet", "maps.parquet", "neighbours.parquet", "clusters.parquet",
        "scores.parquet",
    ]  # fmt: skip
    names = {table.file: table.schema.names for table in (*REQUIRED, *OPTIONAL, LABEL_ISSUES)}
    assert names[NEIGHBORS.file] == [
        "index", "id", "kind", "rank", "neighbour_index", "neighbour_id", "similarity"
    ]  # fmt: skip
    assert [name for name in names[None] if name.startswith("votes")] == ["votes", "votes_predicted", "votes_label"]
    assert all(fields[:2] == ["index", "id"] for fields in names.values())
    assert {"png"} <= set(names[IMAGES.file])
    assert {"values", "scale"} <= set(names[MAPS.file])
    assert {"morf", "lerf", "combined"} <= set(names[SCORES.file])
    assert {"logits", "probabilities"} <= set(names[PREDICTIONS.file])


def test_stored_values_are_the_map_in_half_precision():
    raw = torch.tensor([[[1e-9, -4e-9]], [[70_000.0, 7.0]], [[float("nan"), float("nan")]], [[0.0, 0.0]]])
    values, scale = stored_values(raw)
    assert values.dtype == torch.float16
    torch.testing.assert_close((values.float() * scale[:, None, None])[:2], raw[:2], rtol=1e-3, atol=0)
    assert scale[2:].tolist() == [0, 0]
    assert values[2].isnan().all()
    assert not values[3].any()
