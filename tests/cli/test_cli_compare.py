"""`whycam compare` and `whycam measures`, on the bundled network and images."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from whycam.cli.main import main
from whycam.comparison.run import DEFAULT_METRICS

QUICK = ["--images", "6", "--layers", "layer4[-1]", "--methods", "gradcam", "--measures", "drop", "sanity"]


def run(capfd, *arguments):
    capfd.readouterr()
    status = main([*map(str, arguments)])
    out, error = capfd.readouterr()
    return status, out, error


def test_compare_prints_a_table_and_writes_its_files(tmp_path):
    out = tmp_path / "compared"
    result = subprocess.run(
        [sys.executable, "-m", "whycam", "compare", "cifar10-resnet18", "bundled", *QUICK, "--out", str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    first, _, head, *rows = result.stdout.splitlines()
    assert first == "6 images of CIFAR-10 (bundled 1,000), test; maps of the predicted class"
    assert head.split() == ["method", "layer", "Drop", "↓", "Sanity", "↓", "convincing"]
    assert rows[0].split()[:2] == ["gradcam", "layer4[-1]"]
    assert {row.split()[1] for row in rows[1:4]} == {"random", "sobel", "center"}
    assert f"scores: {out / 'scores.parquet'}" in rows
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json", "comparison.md", "comparison.png", "scores.parquet",
    ]  # fmt: skip
    with Image.open(out / "comparison.png") as figure:
        assert figure.width > 600
    record = json.loads((out / "comparison.json").read_bytes())
    assert (record["images"], record["seed"], record["layers"]) == (6, 0, ["layer4[-1]"])
    assert len(set(record["drawn"])) == 6
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    for measure in record["measures"]:
        for ranking in measure["standings"]:
            key = measure["name"], ranking["method"], ranking["layer"]
            mine = [row["score"] for row in scores if (row["measure"], row["method"], row["layer"]) == key]
            assert len(mine) == ranking["n"] == 6
            assert ranking["mean"] == pytest.approx(sum(mine) / 6)
            assert ranking["interval"][0] <= ranking["mean"] <= ranking["interval"][1]


def test_json_is_reproducible_and_seeds_draw_different_images(capfd, tmp_path):
    found = []
    for seed in (0, 0, 1):
        status, out, error = run(
            capfd, "compare", "cifar10-resnet18", "bundled", *QUICK, "--seed", seed, "--out", tmp_path, "--json"
        )
        assert (status, error) == (0, "")
        found.append(json.loads(out))
    assert found[0] == found[1]
    assert found[0]["drawn"] != found[2]["drawn"]
    assert found[0]["figure"] == str(tmp_path / "comparison.png")


def test_measures_lists_names_and_papers(capfd):
    status, out, _ = run(capfd, "measures")
    assert status == 0
    assert "road         Half the difference in the class's probability" in out
    status, out, _ = run(capfd, "measures", "--json")
    listed = json.loads(out)["measures"]
    assert {measure["name"] for measure in listed if measure["default"]} == set(DEFAULT_METRICS)
    assert all(measure["paper"] and measure["summary"] for measure in listed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--measures", "rode"], "there is no metric 'rode' (did you mean road or drop?)"),
        (["--images", "1"], "compare on at least 2 images, better on 50; got 1"),
        (["--methods", "gradcamm"], "gradcamm"),
        (["--layers", "layer9"], "layer9"),
        (["--batch-size", "0"], "the batch size must be at least 1, got 0"),
        (["--images", "3", "--measures", "pointing"], "pointing needs images of at least 4 classes"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_files(capfd, tmp_path, changes, message):
    folder = tmp_path / "out"
    status, out, error = run(capfd, "compare", "cifar10-resnet18", "bundled", *QUICK, *changes, "--out", folder)
    assert (status, out) == (2, "")
    assert error.startswith("whycam: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists() or not list(folder.iterdir())


def test_unwritable_output_is_refused_before_the_work(capfd, tmp_path):
    (tmp_path / "file").write_text("here")
    status, _, error = run(
        capfd, "compare", "cifar10-resnet18", "bundled", *QUICK, "--out", tmp_path / "file" / "deeper"
    )
    assert status == 2
    assert "part of the path is a file" in error
