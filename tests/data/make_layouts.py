"""CIFAR-10's layouts with made-up contents of the true sizes, shared by the tests of data."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def records(number: int) -> np.ndarray:
    """(10000, 3073): different in every batch, quick to compress."""
    rows = np.arange(10_000)
    out = np.empty((10_000, 3073), np.uint8)
    out[:, 0] = (rows + number) % 10
    out[:, 1:] = ((rows * 7 + number)[:, None] + np.arange(3072)[None] // 64) % 256
    return out


def python2_pickle(rows: np.ndarray, *, fortran: bool = False) -> bytes:
    """A batch as Python 2's cPickle wrote the official ones: protocol 2, ``str`` for text and for pixels."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    labels = b"](" + b"".join(b"K" + bytes([label]) for label in rows[:, 0]) + b"e"
    pixels = rows[:, 1:].tobytes("F" if fortran else "C")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87Rq\x03("
        b"K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87Rq\x05(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89")
        + b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )  # fmt: skip
    return b"\x80\x02}(" + text(b"labels") + labels + text(b"data") + array + b"u."


def tar_gz(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def parquet_file(path: Path, images: list[bytes], labels: list, *, column: str = "img", names: list[str] | None = None):
    import pyarrow as pa
    from pyarrow import parquet

    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {column: pa.array([{"bytes": data, "path": None} for data in images], struct_type), "label": pa.array(labels)}
    )
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=3 if len(images) < 100 else 1000)
    return path
