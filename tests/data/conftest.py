"""CIFAR-10's layouts, shared by the tests of data."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from make_layouts import CLASSES, NAMES, parquet_file, png, python2_pickle, records, tar_gz


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    binary = root / "binary" / "cifar-10-batches-bin"
    python = root / "python" / "cifar-10-batches-py"
    binary.mkdir(parents=True)
    python.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        rows = records(number)
        (binary / f"{name}.bin").write_bytes(rows.tobytes())
        (python / name).write_bytes(python2_pickle(rows))
    (python / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, 2))
    # The official archives are not in the order of the batches either.
    order = [NAMES[index] for index in (0, 2, 5, 4, 1, 3)]
    rows = records(5)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    encoded = [png(image) for image in images]
    hub = root / "parquet" / "plain_text"
    half = 5000
    for number, part in enumerate((slice(0, half), slice(half, None))):
        parquet_file(
            hub / f"test-{number:05d}-of-00002.parquet",
            encoded[part],
            rows[part, 0].astype(int).tolist(),
            names=CLASSES,
        )
    return {
        "binary folder": binary,
        "binary parent": binary.parent,
        "python folder": python,
        "python parent": python.parent,
        "binary archive": tar_gz(
            root / "cifar-10-binary.tar.gz",
            {f"cifar-10-batches-bin/{name}.bin": (binary / f"{name}.bin").read_bytes() for name in order},
        ),
        "python archive": tar_gz(
            root / "cifar-10-python.tar.gz",
            {f"cifar-10-batches-py/{name}": (python / name).read_bytes() for name in order},
        ),
        "parquet folder": hub.parent,
    }
