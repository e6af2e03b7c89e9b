"""Checkpoints in every common layout, and files that must be refused."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import whycam
from whycam import WhycamError
from whycam.models import ARCHITECTURES, ModelSpec, load, resnet18, resnet34, save_checkpoint
from whycam.models.resnet import Architecture

BUNDLED = Path(whycam.__file__).parent / "assets" / "cifar10-resnet18"


@pytest.fixture(scope="module")
def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def save(path, content):
    torch.save(content, path)
    return path


LAYOUTS = {
    "plain": lambda s: s,
    "net, acc, epoch": lambda s: {"net": s, "acc": 95.4, "epoch": 199},
    "state_dict": lambda s: {"state_dict": s, "args": {"lr": 0.1}},
    "model": lambda s: {"model": s},
    "module.": lambda s: {f"module.{name}": value for name, value in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{name}": value for name, value in s.items()},
    "net under _orig_mod.module.": lambda s: {"net": {f"_orig_mod.module.{n}": v for n, v in s.items()}, "acc": 1},
    "half precision": lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()},
    "without batch counters": lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_layouts(layout, state, model, batch, tmp_path):
    loaded, spec = load(save(tmp_path / "net.pth", LAYOUTS[layout](state)))
    assert spec.architecture == "resnet18"
    assert spec.classes[3] == "cat"
    assert spec.notes == ("net.pth says nothing of its classes and normalization: CIFAR-10's are assumed.",)
    assert not loaded.training
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(batch), model(batch), rtol=2e-3, atol=2e-3)


def test_bundled_checkpoint(loaded):
    model, spec = loaded
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert not model.training
    assert spec.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert spec.preprocess.size == (32, 32)
    plain = spec.training["evaluations"]["plain"]
    assert plain["images"] == 10_000
    assert plain["correct"] > 9214  # the published study's
    assert spec.notes == ()


def test_own_format_keeps_everything(tmp_path, model, batch):
    spec = ModelSpec("resnet18", tuple("abcdefghij"), training={"epochs": 3, "history": [{"epoch": 1}]})
    folder = save_checkpoint(tmp_path / "run", model, spec)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again, read = load(folder)
    assert torch.equal(again(batch), model(batch))
    assert (read.classes, read.training, read.preprocess) == (spec.classes, spec.training, spec.preprocess)
    assert load(folder / "model.safetensors")[1].classes == spec.classes


def test_half_precision_checkpoint_has_half_the_size_and_the_same_digest(tmp_path, model):
    spec = ModelSpec("resnet18", tuple("abcdefghij"))
    full = save_checkpoint(tmp_path / "full", model, spec)
    half = save_checkpoint(tmp_path / "half", model, spec, dtype=torch.float16)
    size = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert 1.9 < size[0] / size[1] < 2.1
    # The bundled weights are fp16 values: stored either way they are the same network.
    assert load(full)[1].weights_sha256 == load(half)[1].weights_sha256


def test_resnet34_and_other_numbers_of_classes(tmp_path):
    torch.manual_seed(0)
    network = resnet34(7)
    loaded, spec = load(save(tmp_path / "r34.pt", network.state_dict()))
    assert spec.architecture == "resnet34"
    assert spec.classes == tuple(f"class {index}" for index in range(7))
    assert "numbered classes" in spec.notes[0]
    images = torch.randn(2, 3, 40, 24)
    torch.testing.assert_close(loaded(images), network.eval()(images))
    assert sum(parameter.numel() for parameter in ARCHITECTURES["resnet34"](10).parameters()) == 21_282_122


def test_a_new_architecture_needs_only_its_entry(tmp_path, monkeypatch):
    """Its last layer has another name and its own number of classes."""

    def build(num_classes):
        layers = {"stem": nn.Conv2d(3, 4, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
        return nn.Sequential(OrderedDict(layers | {"fc": nn.Linear(4, num_classes)}))

    monkeypatch.setitem(ARCHITECTURES, "small", Architecture(build, class_tensor="fc.bias"))
    network = build(7)
    loaded, spec = load(save(tmp_path / "small.pt", network.state_dict()))
    assert (spec.architecture, len(spec.classes)) == ("small", 7)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images), network.eval()(images))


def test_own_module(model):
    same, spec = load(model, classes=["x"] * 10)
    assert same is model
    assert spec.architecture == "ResNet"


def test_classes_and_preprocess_can_be_overridden(spec):
    other = whycam.Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, size=(32, 32), channels="BGR")
    _, changed = load("cifar10-resnet18", classes=[str(i) for i in range(10)], preprocess=other)
    assert changed.classes[1] == "1"
    assert changed.preprocess == other
    with pytest.raises(WhycamError, match="the network has 10 outputs, but 9 class names are given"):
        load("cifar10-resnet18", classes=spec.classes[:9])


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_executable_pickle_is_refused(tmp_path):
    marker = tmp_path / "executed"
    for name, writer in [("torch.pth", torch.save), ("plain.pth", lambda c, p: p.write_bytes(pickle.dumps(c)))]:
        writer({"net": Bomb(marker)}, tmp_path / name)
        with pytest.raises(WhycamError, match=rf"{name}: holds something besides tensors and plain values.*state_dict"):
            load(tmp_path / name)
    assert not marker.exists()


def test_whole_pickled_module_is_refused(tmp_path, model):
    with pytest.raises(WhycamError, match=r"whycam\.models\.resnet\.ResNet.*which loading would execute"):
        load(save(tmp_path / "module.pth", model))


def test_archive_that_inflates_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(64 * 2**20))
    with pytest.raises(WhycamError, match=r"would unpack to 0\.1 GiB"):
        load(path)


def test_damaged_and_foreign_files(tmp_path, state):
    whole = save(tmp_path / "whole.pth", state).read_bytes()
    cases = {
        "cut.pth": (whole[: len(whole) // 2], "not a readable PyTorch file, perhaps truncated"),
        "empty.pth": (b"", "not a readable PyTorch file"),
        "text.pth": (b"hello there, this is no checkpoint", r"holds something besides|not a readable PyTorch file"),
        "cut.safetensors": ((BUNDLED / "model.safetensors").read_bytes()[:9999], "not a readable safetensors file"),
        "passwd": (b"root:x:0:0:root:/root:/bin/bash\n", "not a readable PyTorch file"),
        "text.safetensors": (b"hello", "not a readable safetensors file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WhycamError, match=f"{name}: {message}"):
            load(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_errors(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "noise"
    for start in [b"", b"\x80\x02", b"PK\x03\x04", *(bytes([byte]) for byte in range(128))] * 4:
        path.write_bytes(start + draw.randbytes(draw.randrange(60)))
        with pytest.raises(WhycamError, match="noise: "):
            load(path)


def test_flipped_bytes_errors(tmp_path):
    draw = random.Random(1)
    path = save(tmp_path / "small.pth", {"a": torch.zeros(3), "b": torch.ones(2, 2)})
    whole = path.read_bytes()
    ends = range(len(whole) - 22, len(whole))  # the archive's own end record
    for place in [*ends, *draw.sample(range(len(whole)), 100)]:
        for value in (0, 255, whole[place] ^ 16):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with pytest.raises(WhycamError, match=r"small\.pth: "):
                load(path)


def test_wrong_tensors_are_refused(tmp_path, state):
    missing = {name: value for name, value in state.items() if name != "conv1.weight"}
    stem = dict(state) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    broken = dict(state) | {"bn1.weight": torch.full((64,), torch.nan)}
    for content, message in [
        (missing, r"bn1.weight, bn1.bias, bn1.running_mean … 121 in all\) are those of none of resnet18, resnet34"),
        (stem, r"conv1.weight has the shape \(64, 3, 7, 7\); resnet18 for 32×32 input needs \(64, 3, 3, 3\)"),
        (broken, "bn1.weight holds NaN or infinite values"),
        ({"epoch": 3, "optimizer": {"lr": 1}}, "no state_dict in it.*it has 'epoch', 'optimizer'"),
        ([1, 2], "no state_dict in it"),
    ]:
        with pytest.raises(WhycamError, match=message):
            load(save(tmp_path / "net.pth", content))


def test_missing_checkpoint_errors(tmp_path):
    with pytest.raises(
        WhycamError, match=r"no such checkpoint; give a file, a folder, or a bundled name \(did you mean"
    ):
        load("cifar10-resnet81")
    with pytest.raises(WhycamError, match=r"model.safetensors is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet81"}, r"unknown architecture 'resnet81' \(did you mean resnet18"),
        ({"architecture": "resnet34"}, "are not those of resnet34"),
        ({"classes": ["a"]}, "10 outputs, but 1 class names"),
        ({"classes": "abcdefghij"}, "not a whycam checkpoint description"),
        ({"format": 9}, "checkpoint format 9, but this whycam reads format 1: update whycam"),
        ({"preprocess": {"mean": [0.5]}}, "preprocess: cannot be read"),
        ({"weights_sha256": "0" * 64}, r"checksum mismatch\): fetch or write the checkpoint again"),
    ],
)
def test_wrong_config_errors(tmp_path, change, message):
    folder = tmp_path / "run"
    shutil.copytree(BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WhycamError, match=message):
        load(folder)


def test_changed_weights_fail_the_checksum(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(BUNDLED, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["linear.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WhycamError, match="checksum mismatch"):
        load(folder)


def test_unwritable_folder_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WhycamError, match="cannot be written: part of the path is a file"):
        save_checkpoint(tmp_path / "file" / "run", resnet18(), ModelSpec("resnet18", ()))


def test_damaged_and_unusual_weights_errors(tmp_path):
    from whycam.models.resnet import resnet18

    state = resnet18(10).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    content = bytearray((tmp_path / "whole.pth").read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory : directory + 4] = b"XXXX"
    (tmp_path / "directory.pth").write_bytes(content)
    torch.save(state | {"linear.bias": torch.tensor(0.0)}, tmp_path / "scalar.pth")
    torch.save(state | {"linear.weight": state["linear.weight"].to(torch.complex64)}, tmp_path / "complex.pth")
    torch.save(state | {"linear.weight": state["linear.weight"].long()}, tmp_path / "whole-numbers.pth")
    for name, message in [
        ("directory.pth", "not a readable PyTorch file"),
        ("scalar.pth", "are those of none of"),
        ("complex.pth", "linear.weight holds torch.complex64 values"),
        ("whole-numbers.pth", "linear.weight holds torch.int64 values"),
    ]:
        with pytest.raises(WhycamError, match=message):
            whycam.load(tmp_path / name)


def test_checkpoint_named_by_its_weights_file_is_checked(tmp_path, loaded):
    folder = whycam.save_checkpoint(tmp_path / "run", *loaded)
    assert whycam.load(folder / "model.safetensors")[1].classes == loaded[1].classes
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(WhycamError, match="checksum mismatch"):
            whycam.load(path)
