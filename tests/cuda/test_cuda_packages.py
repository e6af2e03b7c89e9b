"""Other packages on a GPU: metrics, figures, factorization, the study, the command line, device helpers, comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from map_errors import relative_error
from PIL import Image

import whycam
from whycam import device as devices
from whycam.comparison import compare
from whycam.data import take
from whycam.metrics.faithfulness.imputation import noisy_linear_imputation
from whycam.metrics.faithfulness.road import road
from whycam.study import Config, Study, run_study
from whycam.study.predict import evaluate

LAYERS = ["layer3[-2]", "layer4[-1]"]


@pytest.fixture
def explained(there, images):
    return whycam.explain(there, images, LAYERS, ["gradcam", "hirescam"], {"predicted": None, "cat": 3})


def test_explanation_is_shown_and_saved(explained, tmp_path, device):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    key = ("gradcam", "layer3[-2]", "cat")
    assert explained.heatmap(*key).device.type == device.type
    assert explained.heatmap(*key).shape == (4, 32, 32)
    assert explained.heatmap(*key, scale=torch.ones(4)).shape == (4, 32, 32)
    assert explained.aggregate("gradcam", target="cat", how="product", size="image").shape == (4, 32, 32)
    low, high = explained.range(*key)
    assert bool((low <= high).all())
    assert set(explained.flags) == set(explained.maps)
    for signed in (False, True):
        explained.plot(1, signed=signed).savefig(tmp_path / f"{signed}.png")
        assert (tmp_path / f"{signed}.png").stat().st_size > 1000
    assert "<img" in explained._repr_html_()
    assert "gradcam" in repr(explained)
    again = whycam.load_explanation(explained.save(tmp_path / "maps.safetensors"))
    assert all(torch.equal(raw.cpu(), again.maps[name]) for name, raw in explained.maps.items())
    assert relative_error(explained.heatmap(*key), again.heatmap(*key)) < 1e-6


def test_bfloat16_explanations_are_shown_and_saved(there, images, device, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    with torch.autocast(device.type, torch.bfloat16):
        explained = whycam.explain(there, images, LAYERS)
    explained.plot().savefig(tmp_path / "figure.png")
    assert whycam.load_explanation(explained.save(tmp_path / "maps.safetensors")).layers == tuple(LAYERS)


def test_factorization(exact, exact_there, batch, device):
    here = whycam.factorize(exact, batch.double(), "layer4[-1]", concepts=3)
    there = whycam.factorize(exact_there, batch.double().to(device), "layer4[-1]", concepts=3)
    for name in ("concepts", "maps", "offset", "scores"):
        assert relative_error(getattr(there, name), getattr(here, name)) < 1e-6, name
        assert getattr(there, name).device.type == device.type
    assert there.error == pytest.approx(here.error, rel=1e-6)


def test_noisy_linear_imputation(device):
    draw = torch.Generator().manual_seed(0)
    images, removed = torch.rand(3, 3, 32, 32, generator=draw), torch.rand(3, 32, 32, generator=draw) < 0.7
    assert (
        relative_error(
            noisy_linear_imputation(images.to(device), removed.to(device)), noisy_linear_imputation(images, removed)
        )
        < 1e-6
    )


@pytest.mark.parametrize("targets_on_cpu", [True, False])
def test_road(exact, exact_there, spec, bundled, device, targets_on_cpu):
    pixels = bundled.read(range(6)).double() / 255
    targets = torch.as_tensor(np.asarray(bundled.labels[:6], dtype=np.int64))
    # All values differ by much more than rounding, so the order of the pixels is the same on both devices.
    maps = torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def normalized(images):
        return spec.preprocess(images.float()).double()

    here = road(exact, pixels, maps, targets, preprocess=normalized, seed=3)
    there = road(
        exact_there, pixels.to(device), maps if targets_on_cpu else maps.to(device),
        targets if targets_on_cpu else targets.to(device), preprocess=normalized, seed=3,
    )  # fmt: skip
    assert there.morf.device.type == device.type
    for name in ("morf", "lerf", "combined"):
        assert relative_error(getattr(there, name), getattr(here, name)) < 1e-4, name


def test_evaluate(model, there, spec, bundled):
    source = take(bundled, 300)
    here, far = (evaluate(network, spec, source) for network in (model, there))
    assert far.correct == here.correct
    assert far.cross_entropy == pytest.approx(here.cross_entropy, rel=1e-4)


def test_study(model, there, spec, bundled, device, tmp_path):
    """Predictions, errors, neighbors and maps are the same; scores differ only by pixels of nearly equal rank."""
    source, config = take(bundled, 300), Config(methods=("gradcam", "hirescam"), score_images=4, baseline=2, limit=300)
    here, far = (run_study(network, spec, source, tmp_path / name, config)
                 for network, name in ((model, "here"), (there, "far")))  # fmt: skip
    assert far.manifest["device"] == devices.device_name(next(there.parameters()).device)
    assert far.manifest["device"].startswith(device.type)
    one, other = here.predictions, far.predictions
    for name in ("id", "label", "predicted", "correct"):
        assert one[name].to_pylist() == other[name].to_pylist(), name
    logits = [torch.tensor(table["logits"].to_pylist()) for table in (one, other)]
    assert relative_error(logits[1], logits[0]) < 1e-4
    assert far.metrics["errors"] == here.metrics["errors"] > 3
    one, other = here.maps, far.maps
    for name in ("id", "method", "layer", "target", "class_index"):
        assert one[name].to_pylist() == other[name].to_pylist(), name
    grids = {}
    for place, table in enumerate((one, other)):
        for row in table.to_pylist():
            found = torch.from_numpy(Study.raw_map(row))
            grids.setdefault((row["id"], row["method"], row["layer"], row["target"]), [None, None])[place] = found
    far_off = {key: relative_error(b, a) for key, (a, b) in grids.items() if relative_error(b, a) > 2e-2}
    assert len(far_off) <= 0.01 * len(grids), far_off
    assert {key[2] for key in far_off} <= {"layer2[-2]"}  # gradients at deeper layers pass fewer ReLUs
    one, other = here.scores, far.scores
    assert one["id"].to_pylist() == other["id"].to_pylist()
    combined = [torch.tensor(table["combined"].to_pylist(), dtype=torch.float64) for table in (one, other)]
    assert float((combined[1] - combined[0]).abs().median()) < 1e-3
    # The study has the same key on both devices, so it can be continued on the other one.
    assert far.manifest["key"] == here.manifest["key"]
    assert run_study(model, spec, source, tmp_path / "far", config).path == far.path


def command(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "whycam", *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_command_line_evaluate(device):
    options = ("evaluate", "cifar10-resnet18", "bundled", "--limit", 300, "--json")
    here, far = (json.loads(command(*options, "--device", name)) for name in ("cpu", device))
    # The subprocess uses torch's default for convolutions, TensorFloat-32.
    assert far["n"] == here["n"] == 300
    assert abs(far["correct"] - here["correct"]) <= 1
    assert far["cross_entropy"] == pytest.approx(here["cross_entropy"], rel=2e-2)


def test_command_line_explain_and_study(device, bundled, tmp_path, capsys):
    from whycam.cli.main import main

    Image.fromarray(bundled.read([0])[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    assert not main(["explain", "cifar10-resnet18", str(tmp_path / "one.png"), "--target", "cat", "--out",
                     str(tmp_path), "--device", str(device), "--json"])  # fmt: skip
    assert (tmp_path / "one.png.whycam.png").stat().st_size > 1000
    capsys.readouterr()
    assert not main(["study", "cifar10-resnet18", "bundled", "--limit", "64", "--out", str(tmp_path / "study"),
                     "--device", str(device), "--score-images", "2", "--json"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["n"] == 64
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000


def test_device_helpers(device):
    assert devices.pick_device(str(device)).type == device.type
    found = devices.pick_device()
    assert found.type == ("cuda" if torch.cuda.is_available() else found.type)
    tensor = torch.ones(2, device=device)
    assert devices.has_double(tensor.device)
    assert devices.in_double(tensor).dtype == torch.float64
    assert devices.in_double(tensor).device == tensor.device
    assert devices.device_name(tensor.device).startswith(f"{tensor.device} (")
    if device.type == "cuda":
        assert torch.cuda.get_device_name() in devices.device_name(tensor.device)
        count = torch.cuda.device_count()
        with pytest.raises(whycam.WhycamError, match=rf"device 'cuda:{count}' is not available here .*use cpu or auto"):
            devices.pick_device(f"cuda:{count}")
        devices.reuse_freed_memory()


def test_load_onto_the_device(device, model, images):
    network, spec = whycam.load("cifar10-resnet18", device=device)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {device.type}
    pixels = whycam.open_source("bundled").read(range(4))
    assert relative_error(spec.preprocess(pixels.to(device)), images) < 1e-6
    with torch.no_grad():
        assert relative_error(network(images), model(images.cpu())) < 1e-5
    assert str(whycam.summarize(network, (3, 32, 32))) == str(whycam.summarize(model, (3, 32, 32)))


def test_checkpoint_does_not_depend_on_the_device(there, model, spec, tmp_path):
    one, other = (tmp_path / name for name in ("here", "there"))
    for network, path in ((model, one), (there, other)):
        whycam.save_checkpoint(path, network, spec)
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_compare(model, there, spec, images, device):
    pixels = spec.preprocess.invert(images).float() / 255
    metrics = ["road", "deletion", "drop", "coherency", "sensitivity", "infidelity", "sanity"]

    def compared(model, pixels):
        return compare(
            model, pixels, ["gradcam", "refinecam"], LAYERS, preprocess=spec.preprocess.normalize, metrics=metrics
        )

    expected, found = compared(model, pixels.cpu()), compared(there, pixels.to(device))
    for name in metrics:
        for key, values in expected.scores[name].items():
            assert found.scores[name][key].device.type == "cpu"
            torch.testing.assert_close(found.scores[name][key], values, atol=5e-3, rtol=0)
