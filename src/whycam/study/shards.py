"""Long work in shards: each is written whole or not at all, so that a killed run continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whycam.files import replacing
from whycam.study.tables import Table


def write_missing_shards(
    folder: Path,
    tables: Mapping[str, Table],
    total: int,
    size: int,
    compute: Callable[[range], Iterator[Mapping[str, pa.Table]]],
) -> dict[str, list[Path]]:
    """Write ``<name>-00000.parquet`` … of every name for every block of items that lacks one of them.

    Args:
        folder: where the shards lie.
        tables: name of the shards → their table.
        total: number of items. It alone decides on the blocks, so that a rerun has the same.
        size: items in a block.
        compute: gives the rows of a block, batch after batch: name → rows.

    Returns:
        For each name its shards in order, all of them present.
    """
    paths: dict[str, list[Path]] = {name: [] for name in tables}
    for number, start in enumerate(range(0, total, size)):
        shard = {name: folder / f"{name}-{number:05d}.parquet" for name in tables}
        if not all(path.exists() for path in shard.values()):
            with ExitStack() as stack:
                writers = {name: stack.enter_context(parquet_writer(shard[name], tables[name])) for name in tables}
                for batch in compute(range(start, min(start + size, total))):
                    for name, rows in batch.items():
                        writers[name].write_table(rows)
        for name, path in shard.items():
            paths[name].append(path)
    return paths


@contextmanager
def parquet_writer(path: Path, table: Table) -> Iterator[pq.ParquetWriter]:
    """A writer of rows of ``table``; the file appears only when the block has ended without an error."""
    with replacing(path) as partial, pq.ParquetWriter(partial, table.schema, compression="zstd") as writer:
        yield writer


def assemble(out: Path, table: Table, shards: Sequence[Path]) -> None:
    """Join the table's columns of all shards into its file in ``out``. One shard is in memory at a time."""
    with parquet_writer(table.path(out), table) as writer:
        for shard in shards:
            writer.write_table(table.read(shard))
