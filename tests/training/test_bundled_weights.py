"""The bundled weights: their model card agrees with the command, and the tool that makes them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import two_classes

import whycam
from whycam.training import find_recipe, train

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import make_bundled_weights  # noqa: E402

CARD = make_bundled_weights.FOLDER / "README.md"
RECIPE = find_recipe("record", ["epochs=1", "batch_size=16", "crops=[[0,16]]", "precision=fp32"])


def test_model_card_agrees_with_the_record():
    record = json.loads((make_bundled_weights.FOLDER / "config.json").read_text())["training"]
    card = CARD.read_text()
    for view, name in (("plain", "plain"), ("flip", "with the mirror image"), ("six", "six views")):
        cells = [
            f"{result['correct']:,} ({result['correct'] / result['images']:.2%})" if result else "not measured"
            for result in (record[form].get(view) for form in ("evaluations_fp32", "evaluations"))
        ]
        assert f"| {name} | {' | '.join(cells)} |" in card
    classes = whycam.load("cifar10-resnet18")[1].classes
    for name, share in zip(classes, record["evaluations"]["plain"]["per_class"], strict=True):
        assert f"| {name} | {share:.1%} |" in card
    assert record["recipe"]["name"] == "record"
    assert record["seed"] == 0


@pytest.mark.slow
def test_evaluate_command_repeats_the_model_card(cifar10):
    done = subprocess.run(
        [sys.executable, "-m", "whycam", "evaluate", "cifar10-resnet18", str(cifar10), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    right = f"{found['correct']:,} ({found['accuracy']:.2%})"
    assert f"| {right} | {found['cross_entropy']:.4f} | {found['ece']:.4f} |" in CARD.read_text()


@pytest.mark.slow
def test_weights_and_card_are_made_from_a_run(tmp_path, capsys):
    """A real run on a few images is stored and loaded; another seed and other images are refused."""
    data, out, runs = two_classes(tmp_path / "data", test=16), tmp_path / "package", tmp_path / "runs"
    splits = [whycam.open_source(data, split) for split in ("train", "test")]
    for seed in (0, 3):
        train(RECIPE, *splits, runs / f"seed-{seed}", seed=seed, device="cpu")
    records = [json.loads((runs / f"seed-{seed}" / "config.json").read_text())["training"] for seed in (0, 3)]
    plain = [record["evaluations"]["plain"]["accuracy"] for record in records]
    several = f"Over 2 seeds the plain accuracy is {statistics.mean(plain):.2%} ± {statistics.stdev(plain):.2%}"
    for more, spread in (
        ([], "One run, seed 0, n = 1"),
        (["--seeds", str(runs / "seed-0")], "One run, seed 0, n = 1"),
        (["--seeds", str(runs)], several),
    ):
        assert make_bundled_weights.main([str(runs / "seed-0"), str(data), "--out", str(out), *more]) == 0
        card = (out / "README.md").read_text()
        assert spread in card
        assert "On the 32 official test images" in card
    model, spec = whycam.load(out)
    assert spec.training["evaluations"]["plain"]["images"] == 32
    assert set(spec.training["evaluations_fp32"]) == {"flip", "plain", "six"}
    half = make_bundled_weights.half_precision(whycam.load(runs / "seed-0")[0])
    for (name, stored), value in zip(model.state_dict().items(), half.state_dict().values(), strict=True):
        assert (stored == value).all(), name
    other = ["--seeds", str(runs / "seed-3")]
    for folder, images, more, sentence in (
        ("seed-3", str(data), [], "its seed is 3; the package ships seed 0"),
        ("seed-0", "bundled", [], "are not those that"),
        ("seed-0", str(data), other, "the run whose weights are to be shipped is not among these"),
        ("seed-0", str(data), ["--seeds", str(tmp_path / "nowhere")], "there is no training run"),
    ):
        capsys.readouterr()
        assert make_bundled_weights.main([str(runs / folder), images, "--out", str(tmp_path / "other"), *more]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
