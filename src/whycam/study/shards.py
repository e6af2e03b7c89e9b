"""Long work in shards: each is written whole or not at all, so that a killed run continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whycam.errors import WhycamError
from whycam.files import replacing


def blocks(total: int, size: int) -> Iterator[tuple[int, range]]:
    """(number, positions) of consecutive blocks of ``size``. The total alone decides, so a rerun plans alike."""
    for number, start in enumerate(range(0, total, size)):
        yield number, range(start, min(start + size, total))


def write_missing_shards(
    folder: Path,
    schemas: Mapping[str, pa.Schema],
    total: int,
    size: int,
    compute: Callable[[range], Iterator[Mapping[str, pa.Table]]],
) -> dict[str, list[Path]]:
    """Write ``<name>-00000.parquet`` … of every table for every block that lacks one of them.

    Args:
        folder: where the shards lie.
        schemas: name of the shards → their columns.
        total: number of items.
        size: items in a block.
        compute: gives the rows of a block, batch after batch: name → rows.

    Returns:
        For each name its shards in order, all of them present.
    """
    paths: dict[str, list[Path]] = {name: [] for name in schemas}
    for number, positions in blocks(total, size):
        shard = {name: folder / f"{name}-{number:05d}.parquet" for name in schemas}
        if not all(path.exists() for path in shard.values()):
            with ExitStack() as stack:
                writers = {name: stack.enter_context(parquet_writer(shard[name], schemas[name])) for name in schemas}
                for batch in compute(positions):
                    for name, rows in batch.items():
                        writers[name].write_table(rows)
        for name, path in shard.items():
            paths[name].append(path)
    return paths


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of row groups into ``path``; the file appears only when the block has ended without an error."""
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        yield writer


def assemble(path: Path, shards: Sequence[Path], schema: pa.Schema) -> None:
    """Join the schema's columns of all shards into ``path``. One shard is in memory at a time."""
    with parquet_writer(path, schema) as writer:
        for shard in shards:
            writer.write_table(read_parquet(shard, schema.names, schema))


def read_parquet(
    path: Path, columns: Sequence[str], schema: pa.Schema, added: Collection[str] = frozenset()
) -> pa.Table:
    """Read columns of a Parquet file.

    Args:
        path: the file.
        columns: their names.
        schema: the types.
        added: columns that an older file may lack; they are filled with null.

    Raises:
        WhycamError: the file is missing or damaged, or lacks another column.
    """
    try:
        present = set(pq.read_schema(path).names)
        table = pq.read_table(path, columns=[name for name in columns if name in present])
    except (OSError, pa.ArrowException) as error:
        raise WhycamError(f"{path}: cannot be read as Parquet; delete the study and make it again") from error
    for place, name in enumerate(columns):
        if name in present:
            continue
        if name not in added:
            raise WhycamError(f"{path}: the column {name!r} is missing; delete the study and make it again")
        table = table.add_column(place, schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table
