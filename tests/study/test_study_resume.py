"""A killed study continues, is complete only with all its files, and never mixes with another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from real_study import CONFIG, N, same_scores

from whycam import Study, WhycamError
from whycam.data import take
from whycam.study import Config, run_study


def test_finished_study_is_not_written_again(study, loaded, source):
    before = {path.name: path.stat().st_mtime_ns for path in study.path.iterdir()}
    again = run_study(*loaded, source, study.path, CONFIG)
    assert {path.name: path.stat().st_mtime_ns for path in study.path.iterdir()} == before
    assert again.metrics == study.metrics


def test_another_study_in_the_folder_is_refused(study, loaded, source):
    for config, data in [
        (dataclasses.replace(CONFIG, methods=("gradcam",)), source),
        (dataclasses.replace(CONFIG, layers=("layer4[-1]",)), source),
        (dataclasses.replace(CONFIG, score_images=0), source),
        (CONFIG, take(source, N - 1)),
    ]:
        with pytest.raises(WhycamError, match=r"holds another study .*give another folder"):
            run_study(*loaded, data, study.path, config)


def test_folder_with_other_files_is_refused(loaded, source, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WhycamError, match=r"holds something else \(thesis.tex\); give a new or empty folder"):
        run_study(*loaded, source, tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(WhycamError, match="is a file; give a folder"):
        run_study(*loaded, source, tmp_path / "thesis.tex", CONFIG)
    with pytest.raises(WhycamError, match="part of the path is a file, not a folder"):
        run_study(*loaded, source, tmp_path / "thesis.tex" / "study", CONFIG)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(WhycamError, match="not a study manifest"):
        run_study(*loaded, source, tmp_path, CONFIG)


def test_nothing_is_written_for_unknown_names(loaded, source, tmp_path):
    for config in (Config(layers=("layer9",)), Config(methods=("gradcram",))):
        with pytest.raises(WhycamError, match="unknown"):
            run_study(*loaded, source, tmp_path / "study", config)
    assert not (tmp_path / "study").exists()


# Forks a process for every line of input. The imports, which take longer than the study, happen once.
SCRIPT = """
import os, sys, whycam
from whycam.data import take
from whycam.study import Config, explanation_pass, run, run_study
run.PREDICTIONS_PER_SHARD, explanation_pass.EXPLANATIONS_PER_SHARD = 16, 4
def told(stage, done, total):
    print(stage, done, total, flush=True)
def study(out):
    source = take(whycam.open_source("bundled"), 120)
    config = Config(methods=("gradcam", "hirescam"), limit=120, batch_size=8, baseline=0, score_images=3)
    run_study(*whycam.load("cifar10-resnet18"), source, out, config, progress=told)
for line in sys.stdin:
    if not (pid := os.fork()):
        print("process", os.getpid(), flush=True)
        study(line.strip())
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def starter():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:
        yield process
        process.stdin.close()


def test_killed_at_any_moment_it_continues(study, starter, tmp_path):
    """SIGKILL until one run finishes: every file in between is whole, and the study is marked as incomplete."""
    out, kills, repeated = tmp_path / "study", 0, []
    rng = random.Random(0)
    while True:
        print(out, file=starter.stdin)
        name, number = starter.stdout.readline().split()
        assert name == "process"
        # Kill it a little after some progress was printed.
        lines, told = rng.randrange(1, 5), 0
        while not (line := starter.stdout.readline()).startswith("ended"):
            assert line, "the starter has ended"
            repeated.append(line)
            told += 1
            if told == lines and kills < 8:
                time.sleep(rng.random() * 0.02)
                with contextlib.suppress(ProcessLookupError):  # finished meanwhile
                    os.kill(int(number), signal.SIGKILL)
        status = int(line.split()[1])
        if status == 0:
            break
        kills += 1
        assert status == -signal.SIGKILL
        manifest = json.loads((out / "manifest.json").read_text())
        if manifest["status"] != "complete":
            with pytest.raises(
                WhycamError, match=r"this study is incomplete .*run the same whycam study command again"
            ):
                Study.load(out)
        for name in ("predictions", "maps", "images"):
            if (out / f"{name}.parquet").exists():
                pq.read_table(out / f"{name}.parquet")  # whole
    assert kills >= 4
    done = Study.load(out)
    columns = ["id", "method", "layer", "target", "class_index"]
    assert done.maps.select(columns).equals(study.maps.select(columns))
    assert done.predictions["predicted"].equals(study.predictions["predicted"])
    columns = ["id", "kind", "rank"]
    assert done.neighbors.select(columns).equals(study.neighbors.select(columns))
    similar = [table["similarity"].to_numpy() for table in (done.neighbors, study.neighbors)]
    np.testing.assert_allclose(*similar, atol=1e-3)
    same_scores(done, study)
    assert done.manifest["files"].keys() == study.manifest["files"].keys()
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
    assert not (out / "parts").exists()
    print(whole := tmp_path / "whole", file=starter.stdin)
    while not starter.stdout.readline().startswith("ended"):
        pass
    for path in [*whole.glob("*.parquet"), whole / "metrics.json"]:
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name  # as if it had never been killed
    # Finished shards were kept: there was less work than in as many runs from the start.
    assert sum(line.startswith("predict") for line in repeated) < (kills + 1) * 16


def test_a_study_is_incomplete_until_it_is_published(loaded, source, tmp_path):
    """A study that is interrupted while figures are drawn is incomplete and can be continued."""
    out, drawn = tmp_path / "study", []

    def fail(done):
        drawn.append(len(done.errors))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(*loaded, take(source, 20), out, Config(), publish=fail)
    with pytest.raises(WhycamError, match=r"this study is incomplete \(stopped at: publish\)"):
        Study.load(out)
    done = run_study(*loaded, take(source, 20), out, Config(), publish=lambda done: drawn.append(len(done.errors)))
    assert drawn == [len(done.errors)] * 2
    assert Study.load(out).manifest["status"] == "complete"
