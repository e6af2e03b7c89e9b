"""CIFAR-10 in every layout, and what is refused."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from make_layouts import python2_pickle, records, tar_gz

from whycam.data import ArraySource, open_source, take
from whycam.errors import WhycamError

LAYOUTS = ("binary folder", "binary parent", "python folder", "python parent", "binary archive", "python archive")


@pytest.mark.parametrize("layout", [*LAYOUTS, "parquet folder"])
def test_every_layout_gives_the_same_test_set(layouts, layout):
    source = open_source(layouts[layout])
    expected = records(5)
    assert isinstance(source, ArraySource)
    assert source.split == "test"
    assert source.classes[3] == "cat"
    assert source.ids[42] == "test/00042"
    assert len(source) == len(set(source.ids)) == 10_000
    assert np.array_equal(source.labels, expected[:, 0])
    assert np.array_equal(source.images.reshape(10_000, -1), expected[:, 1:])
    assert source.digest == open_source(layouts["binary folder"]).digest
    assert source.name == "CIFAR-10 (other contents than the official files)"


@pytest.mark.parametrize("layout", ["binary folder", "binary archive", "python archive"])
def test_training_batches_are_in_order(layouts, layout):
    source = open_source(layouts[layout], "train")
    assert len(source) == 50_000
    assert source.ids[-1] == "train/49999"
    for number in range(5):
        batch = source.read([number * 10_000, number * 10_000 + 9_999]).numpy().reshape(2, -1)
        assert np.array_equal(batch, records(number)[[0, 9_999], 1:])


def test_reads_a_batch_in_the_order_asked_for(layouts):
    source = open_source(layouts["binary folder"])
    both = source.read([7, 3])
    assert both.shape == (2, 3, 32, 32)
    assert np.array_equal(both[1], source.read(np.array([3]))[0])
    assert source.read([]).shape == (0, 3, 32, 32)


def test_python_pickles_of_other_protocols_and_orders(layouts, tmp_path):
    import pickle

    rows = records(5)
    for protocol in (2, 3, 4):
        batch = {"labels": rows[:, 0].astype(int).tolist(), "data": rows[:, 1:].copy()}
        (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        assert open_source(tmp_path).digest == open_source(layouts["binary folder"]).digest
    (tmp_path / "test_batch").write_bytes(python2_pickle(rows, fortran=True))
    assert open_source(tmp_path).digest == open_source(layouts["binary folder"]).digest


def test_labels_follow_a_models_classes(layouts):
    model = ("truck", "ship", "horse", "frog", "dog", "deer", "cat", "bird", "car", "Plane", "toaster")
    source = open_source(layouts["binary folder"], classes=model)
    assert source.classes == model
    plain = open_source(layouts["binary folder"])
    names = {"automobile": "car", "airplane": "Plane"}
    assert [model[label] for label in source.labels[:20]] == [
        names.get(plain.classes[label], plain.classes[label]) for label in plain.labels[:20]
    ]
    with pytest.raises(WhycamError, match=r"'airplane' is not one of the model's 2 classes \(there are cat, dog\)"):
        open_source(layouts["binary folder"], classes=("cat", "dog"))


def test_take_keeps_ids_and_order(layouts):
    source = open_source(layouts["binary folder"])
    part = take(source, 10)
    assert (len(part), part.ids[9], part.split) == (10, "test/00009", "test")
    assert part.read([9]).equal(source.read([9]))
    assert np.array_equal(part.labels, source.labels[:10])
    assert part.digest != source.digest
    assert take(source, 10_000) is source
    with pytest.raises(WhycamError, match="at least 1, got 0"):
        take(source, 0)


def refused(path: Path, split: str = "test") -> str:
    with pytest.raises(WhycamError) as caught:
        open_source(path, split)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_and_unknown_paths(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "it is empty; give CIFAR-10 as .tar.gz" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    message = refused(tmp_path)
    assert "it holds notes.txt; give" in message
    assert "cifar-10-batches-bin" in message
    assert "'bundled'" in message
    assert "is nothing whycam reads" in refused(tmp_path / "notes.txt")
    (tmp_path / ".cifar-10-batches-bin.partial").mkdir()
    assert "unfinished download" in refused(tmp_path)


def test_splits_that_do_not_exist(layouts, tmp_path):
    assert "splits train and test, not 'val'" in refused(layouts["binary folder"], "val")
    shutil.copy(layouts["binary folder"] / "test_batch.bin", tmp_path)
    assert len(open_source(tmp_path)) == 10_000
    assert "data_batch_1.bin is missing" in refused(tmp_path, "train")
    with pytest.raises(WhycamError, match=r"bundled images are test images, there is no split 'train'"):
        open_source("bundled", "train")


def test_truncated_and_damaged_binary_files(layouts, tmp_path):
    good = (layouts["binary folder"] / "test_batch.bin").read_bytes()
    file = tmp_path / "test_batch.bin"
    file.write_bytes(good[:-1])
    assert "has 30,729,999 bytes instead of 30,730,000" in refused(tmp_path)
    file.write_bytes(b"\x0b" + good[1:])
    assert "has labels from 0 to 11 instead of 0 to 9" in refused(tmp_path)
    assert "give the folder that it lies in" in refused(file)


def test_truncated_and_foreign_archives(layouts, tmp_path):
    good = layouts["binary archive"].read_bytes()
    file = tmp_path / "data.tar.gz"
    for data in (good[: len(good) // 2], good[:-4], good[:100], good[:-8] + b"\0\0\0\0" + good[-4:]):
        file.write_bytes(data)
        assert "is truncated or damaged, or no .tar.gz archive" in refused(file)
    file.write_bytes(gzip.compress(b"just text"))
    assert "truncated or damaged" in refused(file)
    tar_gz(file, {"a/b.txt": b"x"})
    assert "holds no test_batch of CIFAR-10" in refused(file)
    tar_gz(file, {"cifar-10-batches-bin/test_batch.bin": b"x" * 10})
    assert "has 10 bytes instead of 30,730,000" in refused(file)


def unsafe_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member, io.BytesIO())
    return path


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "cifar-10-batches-bin/../../evil", "..\\evil", "C:/evil"])
def test_path_traversal(tmp_path, name):
    assert f"would escape its folder ({name!r})" in refused(unsafe_tar(tmp_path / "x.tar.gz", name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = unsafe_tar(tmp_path / "x.tar.gz", "test_batch.bin", kind, "/etc/passwd")
    assert "is no plain file ('test_batch.bin')" in refused(path)


def test_tar_bomb(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("cifar-10-batches-bin/filler")
    member.size = 2**34
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(member.tobuf())
        for _ in range(260):
            out.write(bytes(2**20))
    assert "unpacks to more than 268,435,456 bytes" in refused(path)


def pickle_file(folder: Path, program: bytes) -> Path:
    """A pickle of a plausible length; what follows its STOP is never looked at."""
    (folder / "test_batch").write_bytes(program + bytes(31_000_000 - len(program)))
    return folder


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "it asks for os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "it asks for builtins.eval"),
        (b"(S'x'\ni__main__\nX\n.", "it uses the pickle instruction STRING"),
        (b"\x80\x02]q\x01cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "it calls numpy.ndarray"),
        (b"\x80\x02" + b"]" * 1_100_000 + b".", "it has more than 1,000,000 instructions"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R.", "it encodes strings"),
        (b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.", "it changes _codecs.encode"),
        (b"\x80\x02}\x8a\x09" + b"\x01" * 9 + b"Ns.", "it holds an integer of more than 64 bits"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "it uses the memo index 2,147,483,647"),
        (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "it has more than 16 tuples"),
        (b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns.", "it has more than 16 tuples"),
    ],
)  # fmt: skip
def test_hostile_pickles_are_refused_by_name(tmp_path, program, reason):
    message = refused(pickle_file(tmp_path, program))
    assert f"is not a plain CIFAR-10 batch ({reason}" in message


@pytest.mark.parametrize("program", [b"", b"garbage", b"\x80\x02}.", b"\x80\x02].", b"\x80\x02h\x05.", b"\x80\x02(u."])
def test_damaged_pickles(tmp_path, program):
    assert "download the official archive" in refused(pickle_file(tmp_path, program))


def test_a_pickle_bomb_stays_within_bounds(tmp_path):
    """LONG_BINPUT with a large index makes pickle's own memo take 32 GB; here an address space of 4 GB suffices."""
    pickle_file(tmp_path, b"\x80\x02]r\xff\xff\xff\x7f" + b"q\x00h\x00h\x00\x86q\x00" * 200_000 + b".")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))\n"
        "from whycam.data import open_source; from whycam.errors import WhycamError\n"
        "try: open_source(sys.argv[1])\n"
        "except WhycamError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no CIFAR-10 batch" in done.stdout or "not a plain CIFAR-10 batch" in done.stdout


def test_cifar_100_is_named(tmp_path):
    pickle_file(tmp_path, b"\x80\x02}U\x0bfine_labels]s.")
    assert "is CIFAR-100" in refused(tmp_path)


def test_import_needs_no_optional_package():
    optional = ("PIL", "pyarrow", "matplotlib", "rich", "pooch")
    program = f"import sys, whycam.data; print([n for n in {optional} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
