"""Long work in parts: each is written once, whole, so that work that was killed continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whycam.errors import WhycamError
from whycam.files import replacing


def blocks(total: int, size: int) -> Iterator[tuple[int, range]]:
    """(number, positions) of consecutive blocks of ``size``; planned from the total alone, so a rerun plans alike."""
    for number, start in enumerate(range(0, total, size)):
        yield number, range(start, min(start + size, total))


def write_missing(
    folder: Path,
    name: str,
    total: int,
    size: int,
    compute: Callable[[range], Iterator[pa.Table]],
) -> list[Path]:
    """Write ``name-00000.parquet`` … for every block that has none yet.

    Args:
        folder: where the parts lie.
        name: what they are parts of.
        total: how many items there are.
        size: items in a block.
        compute: gives the rows of a block, in pieces.

    Returns:
        The parts in order, all of them present.
    """
    paths = []
    for number, positions in blocks(total, size):
        path = folder / f"{name}-{number:05d}.parquet"
        if not path.exists():
            write_table(path, compute(positions))
        paths.append(path)
    return paths


def write_table(path: Path, pieces: Iterator[pa.Table], schema: pa.Schema | None = None) -> None:
    """Stream tables into one Parquet file, which appears whole or not at all; with no pieces, an empty table."""
    with replacing(path) as partial:
        writer = pq.ParquetWriter(partial, schema, compression="zstd") if schema is not None else None
        try:
            for piece in pieces:
                if writer is None:
                    writer = pq.ParquetWriter(partial, piece.schema, compression="zstd")
                writer.write_table(piece)
        finally:
            if writer is not None:
                writer.close()


def assemble(path: Path, parts: list[Path], schema: pa.Schema) -> None:
    """Join the schema's columns of parts into ``path``, one at a time: memory does not grow with their number."""
    write_table(path, (read_table(part, schema.names) for part in parts), schema)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file whole, or some of its columns.

    Raises:
        WhycamError: it is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise WhycamError(f"{path}: cannot be read as Parquet; delete the study and make it again") from error
