"""The table of training runs, from real runs, and the program that makes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import RECIPE, run, two_classes

from whycam.training import RECIPES, Recipe, read_history
from whycam.training.history import StepProgress

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import training_table  # noqa: E402
from training_program import ABLATIONS, SEARCH  # noqa: E402


def rows(text):
    """The cells of a Markdown table's rows, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.replace("|  |", "| . |").splitlines()]
    return {line[0]: line[1:] for line in lines[2:]}


def tiny(**changes) -> Recipe:
    """The small recipe with a few changes."""
    return RECIPE.override({"epochs": 2} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three seeds, one of them resumed and one copied; one seed without cutout; one unfinished run; one history."""
    out = tmp_path_factory.mktemp("runs")

    def stop(event):
        if isinstance(event, StepProgress) and (event.epoch, event.step) == (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    for seed in range(3):
        run(out / f"seed-{seed}", recipe=tiny(), seed=seed, on_progress=stop if seed == 1 else None)
    run(out / "seed-1", recipe=tiny(), seed=1, resume=True)
    shutil.copytree(out / "seed-2", out / "backup" / "seed-2")
    (out / "backup" / "seed-2" / "state.pt").unlink()
    (out / "backup" / "seed-2" / "model.safetensors").unlink()
    run(out / "plain", recipe=tiny(cutout=0, evaluate_every=2), seed=1)
    run(out / "begun", recipe=tiny(lr=0.1), on_progress=stop)
    (out / "log").mkdir()
    shutil.copy(out / "begun" / "history.jsonl", out / "log")
    return out


def test_the_table_has_means_over_seeds_beside_the_published_numbers(folder):
    runs = training_table.find_runs([folder])
    table = rows(training_table.table(runs))
    base = next(run for run in runs if run.folder.name == "seed-0").label
    finished = [run for run in runs if run.accuracy and run.label == base]
    assert len(finished) == 3
    tested_on, epochs, n, *views, seconds, hardware = table[base]
    assert (tested_on, epochs, n) == ("CIFAR-10 sample (test)", "2", "3")
    for view, cell in zip(("plain", "flip", "six"), views, strict=True):
        values = [100 * run.accuracy[view] for run in finished]
        assert cell == f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert float(seconds) == pytest.approx(
        statistics.median(read_history(folder / f"seed-{seed}")[-1].seconds / 2 for seed in range(3)), abs=0.06
    )
    assert hardware.startswith("fp32, cpu (")
    (plain,) = (run for run in runs if run.folder.name == "plain")
    # One seed has no standard deviation, and evaluate_every does not matter.
    assert table[plain.label][2:4] == ["1", f"{100 * plain.accuracy['plain']:.2f}"]
    assert ("cutout=4" in base, "cutout" in plain.label) == (True, False)
    assert "evaluate_every" not in plain.label
    (begun,) = (cells for label, cells in table.items() if label.endswith(": not finished"))
    assert begun[1:3] == ["1 of 2", "1"]
    assert begun[3] == f"{100 * read_history(folder / 'begun')[0].test_accuracy:.2f} after 1"
    assert table["the study that whycam repeats, as published"][3] == "92.14"
    assert sum("as published" in label for label in table) == len(training_table.PUBLISHED)


def test_trajectory_equals_the_history(folder):
    lines = training_table.trajectory(training_table.find_runs([folder]), (1, 2)).splitlines()
    for name, seed in (("plain", 1), ("begun", 0)):
        done = read_history(folder / name)
        at = ["" if entry.test_accuracy is None else f"{100 * entry.test_accuracy:.2f}" for entry in done]
        ends = f"| {seed} | {len(done)} | {' | '.join([*at, ''][:2])} |"
        assert any(line.endswith(ends) for line in lines), (ends, lines)
    assert lines[-1] == "| the study, as published |  | 20 | about 44 |  |"


def test_an_ablation_is_the_difference_on_shared_seeds(folder):
    runs = training_table.find_runs([folder])
    table = rows(training_table.ablations(runs, tiny()))
    (plain,) = (run for run in runs if run.folder.name == "plain")
    (base,) = (run for run in runs if run.folder.name == "seed-1")
    difference = 100 * (plain.accuracy["plain"] - base.accuracy["plain"])
    assert table["cutout=0"] == [
        "CIFAR-10 sample (test)",
        "1",
        f"{100 * plain.accuracy['plain']:.2f}",
        f"{difference:+.2f}",
    ]
    assert table["nothing"][1] == "3"


def test_label_names_changes_to_the_preset():
    changed = RECIPES["record"].override({"lr": 0.3, "precision": "bf16", "evaluate_every": 20})
    assert training_table.changes(changed) == {"lr": "0.3"}
    assert training_table.changes(RECIPES["study"].override({"precision": "bf16"})) == {"precision": "bf16"}


def test_training_table_errors(tmp_path, capsys):
    for content, sentence in (
        (None, "there is no training run"),
        ('{"training": {"evaluations": {}}}', "not the record"),
    ):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert training_table.main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_program_stops_in_time_and_resumes(tmp_path):
    """On images of two classes; the second call reads or resumes the sweep's first run.

    A run on other images is refused, and after a diverged run the next one is trained.
    """
    data = two_classes(tmp_path / "data", test=8)
    command = [
        sys.executable, str(TOOLS / "training_program.py"), str(data), "--out", str(tmp_path / "out"),
        "--seeds", "2", "--ablation-seeds", "1", "--set", "epochs=1", "batch_size=16", "crops=[[0,8]]",
    ]  # fmt: skip

    def call(*more):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, *more], capture_output=True, text=True, env=environment, timeout=600)

    stopped = call("--minutes", "0.001")
    assert (stopped.returncode, stopped.stdout) == (3, ""), stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped and saved; the same command goes on"
    done = call()
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "table.md").read_text()
    for path in (tmp_path / "out").rglob("config.json"):
        kept = {entry.name for entry in path.parent.iterdir()}
        weights = (
            {"model.safetensors"}
            if path.parent.parent.parent.name == "test" and path.parent.name == "seed-0"
            else set()
        )
        assert kept == {"config.json", "history.jsonl"} | weights
    # The first run of each line of the search is the best of the line before. Each run has two seeds.
    searched = 2 * (1 + sum(len(line) for line in SEARCH))
    held_out = len(list((tmp_path / "out" / "held-out").rglob("config.json")))
    assert searched < held_out <= searched + len(ABLATIONS)
    assert len(list((tmp_path / "out" / "test").rglob("config.json"))) == 5
    assert call().stderr == ""
    chosen = call("--out", str(tmp_path / "chosen"), "--only", "sweep", "record", "--choose", "lr=0.2", "cutout=3")
    assert chosen.returncode == 0, chosen.stderr
    configs = list((tmp_path / "chosen").rglob("config.json"))
    assert sorted(path.parent.name for path in configs) == ["seed-0", "seed-1"]
    recipes = [json.loads(path.read_text())["training"]["recipe"] for path in configs]
    assert [(recipe["lr"], recipe["cutout"]) for recipe in recipes] == [(0.2, 3)] * 2
    other = call("--limit", "8")
    assert (other.returncode, "holds a run on other images" in other.stderr) == (2, True)

    wild = ["lr=1000", "optimizer=sgd", "decoupled=false", "weight_decay=1", "crops=[[0,8]]", "batch_size=8"]
    wild = ["--out", str(tmp_path / "wild"), "--only", "study", "long", "--seeds", "1", "--set", "epochs=3", *wild]
    diverged = call(*wild)
    # The study's recipe diverges; long with the same learning rate does not.
    assert (diverged.returncode, diverged.stderr.count("training diverged")) == (0, 1), diverged.stderr
    (noted,) = (tmp_path / "wild").rglob("diverged.txt")
    (finished,) = (tmp_path / "wild").rglob("config.json")
    assert [path.parents[1].name.partition("_")[0] for path in (noted, finished)] == ["study", "long"]
    assert ": diverged |" in diverged.stdout
    again = call(*wild)
    assert (again.returncode, again.stderr) == (0, "")
