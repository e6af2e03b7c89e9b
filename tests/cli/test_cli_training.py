"""``whycam train``, ``lr-find`` and ``recipes`` in real processes: a real ResNet-18 on a few dozen real images."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.cli.main import main
from whycam.training import RECIPES, Recipe, read_history
from whycam.training.state import load_state

# Two epochs of two batches. Crops of 8 pixels make a training step cheap; test images are not cropped.
CHEAP = ["--set", "epochs=2", "batch_size=16", "crops=[[0,8]]"]
# The same as the torchrun script, with this Python.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RESULTS = {"model.safetensors", "config.json", "history.jsonl", "curves.png", "state.pt"}
BATCH = r"Loss=\d+\.\d{4} Batch_id=\d+ Accuracy=\d+\.\d\d"
MAX_LR = r"Max Learning Rate: \d\S*"
TESTED = r"Test set: Average loss: \d+\.\d{4}, Accuracy: \d+/16 \(\d+\.\d\d%\)"


def start(*arguments, launcher=(sys.executable,)):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "-m", "whycam", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(*arguments, **options):
    """Run a process to its end; return (exit status, standard output, standard error)."""
    process = start(*arguments, **options)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 32 training images and 16 test images of cats and dogs."""
    root = tmp_path_factory.mktemp("data")
    source = whycam.open_source("bundled")
    for label in (3, 5):
        for count, index in enumerate(np.flatnonzero(source.labels == label)[:24]):
            path = root / ("train" if count < 16 else "test") / source.classes[label] / f"{count:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.read([index])[0].permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished run: its folder, standard output and standard error."""
    out = tmp_path_factory.mktemp("trained") / "run"
    status, said, log = run("train", "--data", data, "--out", out, *CHEAP, "--tensorboard")
    assert status == 0, log
    return out, said, log


def test_train_logs_like_the_study_and_writes_a_checkpoint(trained):
    out, said, log = trained
    lines = log.splitlines()
    assert [line for line in lines if line.startswith("Epoch")] == ["Epoch 1", "Epoch 2"]
    for epoch in (0, 1):
        for line, pattern in zip(lines[1 + 4 * epoch :], (BATCH, MAX_LR, TESTED), strict=False):
            assert re.fullmatch(pattern, line), line
    assert len(lines) == 8
    assert {path.name for path in out.iterdir()} == RESULTS | {"tensorboard"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [record.epoch for record in read_history(out)] == [1, 2]
    assert lines[-1].endswith(f"Accuracy: {read_history(out)[-1].test_correct}/16 ({lines[-1].split('(')[-1]}")
    config = json.loads((out / "config.json").read_bytes())
    assert config["classes"] == ["cat", "dog"]
    assert Recipe.from_dict(config["training"]["recipe"]).name == "study"
    plain = config["training"]["evaluations"]["plain"]
    assert f"seed 0: {plain['correct']} of 16 right, accuracy {100 * plain['accuracy']:.2f}%" in said
    assert f"checkpoint: {out}\n" in said
    assert f"curves:     {out / 'curves.png'}\n" in said


def test_tensorboard_events_are_written_into_the_run(trained):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(trained[0] / "tensorboard")).Reload()
    assert [scalar.step for scalar in events.Scalars("step/loss")] == [16, 32, 48, 64]
    assert [scalar.step for scalar in events.Scalars("epoch/test_accuracy")] == [32, 64]


def test_evaluate_reads_the_checkpoint(trained, data, capsys):
    assert main(["evaluate", str(trained[0]), str(data), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["n"], scores["correct"]) == (16, read_history(trained[0])[-1].test_correct)


def test_json_output_of_train(data, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: cpu\nname: mine\nepochs: 1\nbatch_size: 8\ncrops: [[0, 8]]\n")
    arguments = ["--recipe", recipe, "--validate", 8, "--limit", 24, "--set", "lr=0.01", "--seed", 7, "--json"]
    status, said, log = run("train", "--data", data, "--out", tmp_path / "run", *arguments)
    assert status == 0, log
    (facts,) = json.loads(said)["runs"]
    assert facts["seed"] == 7
    assert facts["checkpoint"] == str(tmp_path / "run")
    assert Path(facts["curves"]).exists()
    assert {view: result["images"] for view, result in facts["evaluations"].items()} == dict.fromkeys(
        ("plain", "flip", "six"), 8
    )
    record = json.loads((tmp_path / "run" / "config.json").read_bytes())["training"]
    assert (record["recipe"]["name"], record["recipe"]["lr"], record["seed"]) == ("mine", 0.01, 7)
    assert record["images"] == 16  # of 24, eight are held out


def test_sigterm_saves_and_resume_gives_the_same_weights(data, tmp_path, trained):
    out = tmp_path / "run"
    arguments = ["train", "--data", data, "--out", out, *CHEAP]
    process = start(*arguments)
    wait_for(lambda: (out / "state.pt").exists(), process)
    process.send_signal(signal.SIGTERM)
    said, log = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said == ""
    assert log.splitlines()[-1] == (f"whycam: interrupted; {out} is saved; the same command with --resume continues it")
    assert len([line for line in log.splitlines() if line.startswith("whycam: ")]) == 1
    assert not (out / "model.safetensors").exists()
    again = refused(*arguments)
    assert again == f"{out}: already holds a training run; resume it or choose another folder"
    assert run(*arguments, "--resume")[0] == 0
    assert weights(out) == weights(trained[0])
    assert {path.name for path in out.iterdir()} == RESULTS


def test_resume_after_sigkill_gives_the_same_weights(data, tmp_path, trained):
    out = tmp_path / "run"
    arguments = ["train", "--data", data, "--out", out, *CHEAP]
    process = start(*arguments)
    wait_for(lambda: (out / "history.jsonl").exists() and (out / "history.jsonl").stat().st_size, process)
    process.kill()
    process.communicate()
    status, said, log = run(*arguments, "--resume")
    assert status == 0, log
    assert weights(out) == weights(trained[0])
    assert "of 16 right" in said
    assert {path.name for path in out.iterdir()} == RESULTS


def test_second_interrupt_stops_at_once(data, tmp_path, capsys):
    """Ctrl-C twice: the first asks for a save, the second stops without waiting for it."""
    out = tmp_path / "run"

    def interrupt_twice():
        while not (out / "history.jsonl").exists():
            time.sleep(0.005)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.03)

    thread = threading.Thread(target=interrupt_twice)
    thread.start()
    assert main(["train", "--data", str(data), "--out", str(out), *CHEAP]) == 130
    thread.join()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last in (
        f"whycam: interrupted; {out} is as it was last saved; the same command with --resume continues it",
        f"whycam: interrupted; {out} is saved; the same command with --resume continues it",
    )
    assert not list(out.glob(".*.partial"))
    assert load_state(out / "state.pt").position.epoch in (0, 1)


def test_several_seeds_report_mean_and_spread(data, tmp_path):
    out = tmp_path / "runs"
    cheaper = ["--set", "epochs=1", "batch_size=16", "crops=[[0,8]]", "--seeds", 2, "--seed", 3]
    status, said, log = run("train", "--data", data, "--out", out, *cheaper, "--tensorboard")
    assert status == 0, log
    assert {path.name for path in out.iterdir()} == {"seed-3", "seed-4", "seeds.json"}
    assert [line for line in log.splitlines() if line.startswith("whycam: ")] == ["whycam: seed 3", "whycam: seed 4"]
    summary = json.loads((out / "seeds.json").read_bytes())
    values = [100 * value for value in summary["accuracy"]["plain"]["values"]]
    assert f"plain {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}% (n=2)\n" in said
    assert summary["seeds"] == [3, 4]
    assert weights(out / "seed-3") != weights(out / "seed-4")
    for seed in (3, 4):
        assert {path.name for path in (out / f"seed-{seed}").iterdir()} == RESULTS | {"tensorboard"}
        assert len(list((out / f"seed-{seed}" / "tensorboard").iterdir())) == 1


def test_two_processes_train_one_network_and_one_prints(data, tmp_path):
    out = tmp_path / "run"
    status, said, log = run("train", "--data", data, "--out", out, *CHEAP, "--device", "cpu", launcher=TORCHRUN)
    assert status == 0, log
    assert len(re.findall(f"^{TESTED}$", log, re.MULTILINE)) == 2
    assert len(re.findall(r"^seed 0: \d+ of 16 right", said, re.MULTILINE)) == 1
    assert len(said.splitlines()) == 3
    assert {path.name for path in out.iterdir()} == RESULTS
    assert json.loads((out / "config.json").read_bytes())["training"]["processes"] == 2


def test_an_error_of_all_processes_is_printed_once(data, tmp_path):
    status, said, log = run("train", "--data", data, "--out", tmp_path, "--recipe", "recrod", launcher=TORCHRUN)
    assert (status, said) == (1, "")
    ours = [line for line in log.splitlines() if line.startswith("whycam: ")]
    assert len(ours) == 1
    assert "there is no recipe 'recrod' (did you mean record?)" in ours[0]


def test_an_error_of_one_process_is_printed(data, tmp_path):
    """The second process has no data."""
    (tmp_path / "data-0").symlink_to(data)
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, sys\nfrom whycam.cli.main import main\n"
        f"data = {str(tmp_path)!r} + '/data-' + os.environ['RANK']\n"
        f"sys.exit(main(['train', '--data', data, '--out', {str(tmp_path / 'run')!r}, '--device', 'cpu']))\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=300)
    ours = [line for line in done.stderr.splitlines() if line.startswith("whycam: ")]
    assert len(ours) == 1
    assert ours[0].startswith(f"whycam: error: process 1: {tmp_path / 'data-1'} does not exist: give CIFAR-10")
    assert not (tmp_path / "run").exists()


def test_lr_find_writes_figure_and_suggestion(data, tmp_path):
    out = tmp_path / "lr"
    arguments = ["--iterations", 20, "--start", "1e-4", "--end", 1, "--set", "batch_size=8", "crops=[[0,8]]"]
    status, said, log = run("lr-find", "--data", data, "--out", out, *arguments)
    assert status == 0, log
    assert log == ""
    assert {path.name for path in out.iterdir()} == {"lr-find.png", "lr-find.json"}
    numbers = json.loads((out / "lr-find.json").read_bytes())
    assert len(numbers["lrs"]) == len(numbers["losses"]) <= 20
    assert numbers["suggestion"] in numbers["lrs"]
    assert numbers["recipe"]["batch_size"] == 8
    assert f"suggested peak learning rate: {numbers['suggestion']:.3g} ({len(numbers['lrs'])} iterations, " in said
    assert f"figure:  {out / 'lr-find.png'}\n" in said


def test_recipes_as_text_and_json(capsys):
    status, said, log = run("recipes")
    assert (status, log) == (0, "")
    assert [line.partition(":")[0] for line in said.splitlines()] == [*RECIPES, "every other field"]
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert {values["name"]: Recipe.from_dict(values) for values in listed} == dict(RECIPES)


@pytest.mark.slow
def test_missing_compiler_is_one_sentence(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    said = refused("train", "--data", data, "--out", tmp_path / "run", *CHEAP, "compile=true")
    assert said.startswith("recipe: compile is true, but torch cannot compile the network here (InvalidCxxCompiler: ")


def test_help_names_only_devices_that_can_train(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "auto, cpu, cuda, cuda:1 (default: auto)" in capsys.readouterr().out


def refused(*arguments):
    status, said, log = run(*arguments)
    assert (status, said) == (2, "")
    assert log.startswith("whycam: error: ")
    assert len(log.splitlines()) == 1
    return log.removeprefix("whycam: error: ").rstrip("\n")


# `main` is called in this process, since each new process would take seconds.
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "recrod"], "there is no recipe 'recrod' (did you mean record?)"),
        (["--recipe", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        (["--set", "epoch=1"], "there is no field 'epoch' (did you mean epochs"),
        (["--set", "epoch=1", "--set", "lr=0.1"], "there is no field 'epoch' (did you mean epochs"),
        (["--set", "lr=fast"], "lr is 'fast'; it must be a number"),
        (["--set", "lr"], "'lr' is not field=value"),
        (["--set", "architecture=resnet81"], "there is no architecture 'resnet81' (did you mean resnet18"),
        (["--set", "crops=[[0,64]]"], "crops of 64 pixels do not fit into images of 32 with a pad of 4"),
        (["--set", "pad=32", "pad_mode=reflect"], "reflecting needs it to be below the images' 32 pixels"),
        (["--data", "{tmp}/nothing"], "nothing does not exist: give CIFAR-10"),
        (["--data", "bundled"], "there is no split 'train'"),
        (["--device", "cudaa"], "device 'cudaa'"),
        (["--device", "meta"], "device 'meta'"),
        (["--device", "mps"], "device 'mps' cannot be used for training; give auto, cpu, cuda or cuda:N"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--validate", "0"], "cannot hold out 0 of 32 images"),
        (["--validate"], "cannot hold out 5000 of 32 images; hold out fewer"),
        (["--resume"], "state.pt: there is no training state to resume; start without resuming"),
        (["--out", "{tmp}/other"], "other: holds something else already; choose a new or an empty folder"),
        (["--out", "{tmp}/other", "--seeds", "2"], "other: holds something else already (thesis.tex)"),
        (["--out", "{tmp}/other/thesis.tex"], "thesis.tex: cannot be written: File exists"),
        (["--out", "{tmp}/other/thesis.tex/run"], "cannot be written: part of the path is a file"),
        (["--out", "{tmp}/" + 300 * "long"], "cannot be written: File name too long"),
        (["--out", "{tmp}/" + 300 * "long", "--seeds", "2"], "cannot be written: File name too long"),
        (["--set", "batch_size=1", "crops=[[0,8]]"], "a batch of one image with crops this small"),
        (["--set", "crops=" + 100_000 * "["], "it must be a list, for example"),
    ],
)
def test_train_mistake_is_one_sentence_and_leaves_no_files(arguments, sentence, data, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "other",
        "other/thesis.tex",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "epochs=3"], "the run was started with another recipe (epochs was 2 and is 3)"),
        (["--seed", "1"], "the run was started with seed 0, not 1"),
        (["--limit", "24"], "the training images are not those that the run was started with"),
    ],
)
def test_resume_with_other_settings_is_refused(arguments, sentence, trained, data, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained[0].iterdir()}
    given = CHEAP + (arguments[1:] if arguments[0] == "--set" else arguments)
    assert main(["train", "--data", str(data), "--out", str(trained[0]), "--resume", *given]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert {path.name: path.stat().st_mtime_ns for path in trained[0].iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--start", "0"], "it needs 0 < start < end and at least 10 iterations"),
        (["--iterations", "5"], "it needs 0 < start < end and at least 10 iterations"),
        (["--set", "crops=[[0,64]]"], "crops of 64 pixels do not fit into images of 32"),
        (["--set", "batch_size=1", "crops=[[0,8]]"], "a batch of one image with crops this small"),
        (["--out", "{tmp}/file"], "file: cannot be written: File exists"),
        (["--device", "meta"], "device 'meta' is not available here"),
    ],
)
def test_lr_find_mistake_is_one_sentence_and_leaves_no_files(arguments, sentence, data, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["lr-find", "--data", str(data), "--out", str(tmp_path / "lr"), *given]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def wait_for(done, process):
    deadline = time.monotonic() + 300
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
