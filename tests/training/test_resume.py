"""A run that is killed at any moment and resumed ends with the same weights as an uninterrupted run."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import MUON, PREPROCESS, RECIPE, Tiny, run, slow_steps, small, without_norm

from whycam.errors import WhycamError
from whycam.training.history import EpochRecord, StepProgress, read_history
from whycam.training.state import Position, TrainingState, load_state, save_state
from whycam.training.train import stop_on_signal

KILLS = 20
# Forked from a server that has already imported torch: a process starts in hundredths of a second, with one thread.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["torch", "torch._dynamo", "PIL.Image", "safetensors.torch", "whycam.training"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(folder, seconds) of an uninterrupted run, in a process like those of the other runs."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    lifetime(tmp_path_factory.mktemp("runs") / "warm-up")
    seconds = lifetime(folder)
    return folder, seconds


def lifetime(folder, die=None, kill_after=None, kill_begun=False, number=signal.SIGKILL, **options):
    """Let one process work on the run in ``folder`` until it ends or is killed; returns its seconds.

    It gets the signal ``number`` after ``kill_after`` seconds, or with ``kill_begun`` as soon as it has saved.
    """
    from tiny import life

    started = SPAWN.Event()
    process = SPAWN.Process(target=life, args=(folder, options, die, started))
    process.start()
    assert started.wait(60)
    began = time.monotonic()
    if kill_begun:
        while process.is_alive() and not (folder / "state.pt").exists():
            time.sleep(0.005)
        kill_after = 0.05
    if kill_after is not None:
        process.join(kill_after)
        if process.is_alive():
            os.kill(process.pid, number)
    process.join(120)
    taken = time.monotonic() - began
    lifetime.exitcode = process.exitcode
    process.close()
    return taken


def same_end(folder, reference):
    """Whether two runs ended in bit-identical weights, averages, optimizer states and histories."""
    ours, theirs = load_state(folder / "state.pt"), load_state(reference / "state.pt")
    for group, tensors in theirs.tensors.items():
        assert ours.tensors[group].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(ours.tensors[group][name], value), f"{group} {name}"
    assert (folder / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    for mine, other in zip(read_history(folder), read_history(reference), strict=True):
        assert {**vars(mine), "seconds": 0} == {**vars(other), "seconds": 0}


def test_resume_after_random_kills(uninterrupted, tmp_path, capsys):
    reference, seconds = uninterrupted
    draw = random.Random(0)
    hits, chains = [], 0
    while len(hits) < KILLS or chains < 2:
        folder = tmp_path / f"chain-{chains}"
        # With a save after every step many kills hit a write; with few saves they hit the training.
        options = {"checkpoint_seconds": (0.0, 0.02)[chains % 2]}
        chains += 1
        while True:
            lifetime(folder, kill_after=draw.uniform(0, seconds), **options)
            if lifetime.exitcode == 0:
                break
            assert lifetime.exitcode == -signal.SIGKILL
            state = folder / "state.pt"
            position = load_state(state).position if state.exists() else None
            where = "before the first save" if position is None else f"epoch {position.epoch} step {position.step}"
            hits.append(where + (" while writing" if list(folder.glob(".*.partial")) else ""))
        same_end(folder, reference)
        assert not list(folder.glob(".*.partial"))
    with capsys.disabled():
        print(
            f"\n{len(hits)} of {len(hits)} kills in {chains} runs resumed bit-identically; they hit: {'; '.join(hits)}"
        )
    assert len(hits) >= KILLS


def test_resume_with_muon(tmp_path):
    """In the middle of an epoch, with different kinds of steps for filters, weights and biases."""
    lifetime(tmp_path / "whole", recipe=MUON)
    lifetime(tmp_path / "killed", die=("just in place", 14), checkpoint_seconds=0.0, recipe=MUON)
    assert lifetime.exitcode == -signal.SIGKILL
    assert load_state(tmp_path / "killed" / "state.pt").position.step > 0
    lifetime(tmp_path / "killed", recipe=MUON)
    assert lifetime.exitcode == 0
    same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("where", ["half-written", "not yet in place", "just in place"])
@pytest.mark.parametrize("save", [1, 2, 11])
def test_resume_after_a_kill_during_a_save(uninterrupted, tmp_path, where, save):
    folder = tmp_path / "run"
    lifetime(folder, die=(where, save), checkpoint_seconds=0.0)
    assert lifetime.exitcode == -signal.SIGKILL
    assert bool(list(folder.glob(".state.pt.*.partial"))) == (where != "just in place")
    assert (folder / "state.pt").exists() == (save > 1 or where == "just in place")
    lifetime(folder, checkpoint_seconds=0.0)
    assert lifetime.exitcode == 0
    same_end(folder, uninterrupted[0])
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(uninterrupted, tmp_path, number):
    folder = tmp_path / "run"
    lifetime(folder, kill_begun=True, number=number, on_progress=slow_steps)
    assert lifetime.exitcode == 0
    assert not (folder / "config.json").exists()
    position = load_state(folder / "state.pt").position
    assert position.epoch + position.step > 0
    lifetime(folder)
    same_end(folder, uninterrupted[0])


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_resume_a_stopped_run(tmp_path):
    def stop_early(event):
        if isinstance(event, StepProgress) and (event.epoch, event.step) == (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(tmp_path / "a", on_progress=stop_early)
    assert not stopped.finished
    assert stopped.evaluations == {}
    assert len(stopped.history) == 1
    state = load_state(tmp_path / "a" / "state.pt")
    assert (state.position.epoch, state.position.step, state.images) == (1, 3, 256 + 3 * 32)
    seen = []
    resumed = run(tmp_path / "a", resume=True, on_progress=seen.append)
    assert resumed.finished
    assert (seen[0].epoch, seen[0].step) == (2, 4)
    whole = run(tmp_path / "b")
    same_end(tmp_path / "a", tmp_path / "b")
    assert resumed.evaluations == whole.evaluations


def test_resuming_a_finished_run_reads_its_results(tmp_path):
    first = run(tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    seen = []
    again = run(tmp_path / "run", resume=True, on_progress=seen.append)
    assert (again.evaluations, again.history) == (first.evaluations, first.history)
    assert seen == []
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == weights


def test_a_failed_write_keeps_the_last_state(tmp_path):
    """The operating system itself refuses to write, through a limit on the size of files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(event):
        if isinstance(event, EpochRecord) and event.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    try:
        with pytest.raises(WhycamError) as error:
            run(tmp_path / "run", on_progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == f"{tmp_path / 'run' / 'state.pt'}: cannot be written: File too large"
    assert load_state(tmp_path / "run" / "state.pt").position.epoch == 2
    assert not list((tmp_path / "run").glob(".*"))
    assert run(tmp_path / "run", resume=True).finished


def test_a_full_disk_error_says_how_to_resume(tmp_path):
    """The next state is written to /dev/full, a device that is always full."""
    folder = tmp_path / "run"

    def fill_up(event):
        if isinstance(event, EpochRecord) and event.epoch == 2:
            (folder / f".state.pt.{os.getpid()}.partial").symlink_to("/dev/full")

    with pytest.raises(WhycamError) as error:
        run(folder, on_progress=fill_up)
    assert str(error.value) == (
        f"{folder / 'state.pt'}: cannot be written: the disk is full; free some space and run the same command again "
        "with --resume (resume=True)"
    )
    assert run(folder, resume=True).finished


def test_resume_a_run_of_version_0_1(uninterrupted, tmp_path):
    """``state-0.1.pt`` was saved by whycam 0.1 in a run like the uninterrupted one, after four steps of epoch 2."""
    (tmp_path / "run").mkdir()
    shutil.copy(Path(__file__).with_name("state-0.1.pt"), tmp_path / "run" / "state.pt")
    seen = []
    assert run(tmp_path / "run", resume=True, on_progress=seen.append).finished
    assert (seen[0].epoch, seen[0].step) == (2, 5)
    ours, theirs = load_state(tmp_path / "run" / "state.pt"), load_state(uninterrupted[0] / "state.pt")
    for name, value in theirs.tensors["average"].items():
        # Not bit for bit: the state may come from another kind of CPU.
        torch.testing.assert_close(ours.tensors["average"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": dataclasses.replace(PREPROCESS, mean=(0.5, 0.5, 0.5))}, "started with another preprocessing"),
        ({"network": without_norm}, "started with another network"),
    ],
)
def test_resuming_with_another_network_or_preprocessing_is_refused(tmp_path, changes, message):
    run(tmp_path / "run", recipe=RECIPE.override({"epochs": 1, "crops": [[0, 16]]}))
    with pytest.raises(WhycamError, match=message):
        run(tmp_path / "run", recipe=RECIPE.override({"epochs": 1, "crops": [[0, 16]]}), resume=True, **changes)


def test_unsaved_epochs_are_repeated(uninterrupted, tmp_path):
    """The history is written after every epoch; a resume drops its records after the state."""
    folder = tmp_path / "run"

    def stop(event):
        if isinstance(event, EpochRecord) and event.epoch == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(folder, checkpoint_epochs=False, on_progress=stop)
    assert load_state(folder / "state.pt").position == Position(0, 0)
    assert [record.epoch for record in read_history(folder)] == [1, 2, 3]
    run(folder, resume=True, checkpoint_epochs=False)
    same_end(folder, uninterrupted[0])


# Python ignores an interrupt inside a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_during_a_save_keeps_a_complete_state(tmp_path):
    """torch's file writer would replace the interrupt by an error of its own."""
    path, draw = tmp_path / "state.pt", random.Random(0)
    weights = {"model": {"w": torch.zeros(1_000_000)}, "optimizer": {}}
    key = dict.fromkeys(("recipe", "seed", "data", "test_data"))
    ends = {"written": 0, "interrupted": 0}

    def save(epoch):
        save_state(path, TrainingState(key, Position(epoch), weights, (0.0, 0, 0), 0, 0.0, []))

    began = time.monotonic()
    save(0)
    usual = time.monotonic() - began
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for epoch in range(1, 61):
            last = load_state(path).position.epoch
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, usual))
                save(epoch)
                signal.setitimer(signal.ITIMER_REAL, 0)
                ends["written"] += 1
            except KeyboardInterrupt:
                ends["interrupted"] += 1
            assert load_state(path).position.epoch in (last, epoch)
            assert list(tmp_path.iterdir()) == [path]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ends["interrupted"] >= 10


def test_resuming_another_run_is_refused(tmp_path):
    folder = tmp_path / "run"
    run(folder)
    state = folder / "state.pt"
    before = state.read_bytes()
    with pytest.raises(WhycamError) as error:
        run(folder, resume=True, recipe=RECIPE.override({"lr": 0.1, "epochs": 5}))
    assert str(error.value) == (
        f"{state}: the run was started with another recipe (epochs was 4 and is 5; lr was 0.05 and is 0.1); "
        "give the same recipe to resume it, or another folder to start anew"
    )
    with pytest.raises(WhycamError) as error:
        run(folder, resume=True, seed=3)
    assert str(error.value) == f"{state}: the run was started with seed 0, not 3; give that seed"
    with pytest.raises(WhycamError) as error:
        run(folder, resume=True, images=255)
    then, now = small(0, 256).digest[:12], small(0, 255).digest[:12]
    assert str(error.value) == (
        f"{state}: the training images are not those that the run was started with (SHA-256 {then}… then, {now}… now); "
        "give the same data to resume it, or another folder to start anew"
    )
    with pytest.raises(WhycamError, match="already holds a training run; resume it or choose another folder"):
        run(folder)
    assert state.read_bytes() == before


def test_resuming_without_a_valid_state_is_refused(tmp_path):
    with pytest.raises(WhycamError, match="there is no training state to resume; start without resuming"):
        run(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    whole = tmp_path / "whole"
    run(whole)
    content = (whole / "state.pt").read_bytes()
    for name, bad in {"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "state.pt").write_bytes(bad)
        with pytest.raises(WhycamError, match=r"state\.pt: this is not a whycam training state, or it is damaged"):
            run(folder, resume=True)
    good = torch.load(whole / "state.pt", weights_only=True)
    header = json.loads(good["header"])
    for bad in (
        {"header": Tiny(10)},
        torch.zeros(3),
        [],
        good | {"header": json.dumps(header | {"key": {}})},
        good | {"tensors": {}},
    ):
        torch.save(bad, tmp_path / "text" / "state.pt")
        with pytest.raises(WhycamError, match=r"state\.pt: this is not a whycam training state, or it is damaged"):
            run(tmp_path / "text", resume=True)


def test_stop_during_an_evaluation(tmp_path, monkeypatch):
    """After an epoch and at the very end; the resumed run has the same weights."""
    # In the package, the name train is the function, not the module.
    loop, train = (sys.modules[f"whycam.training.{name}"] for name in ("loop", "train"))
    evaluate = loop.evaluate_model
    reference = run(tmp_path / "reference")
    for place, at in [(loop, 2), (train, 2)]:
        folder, count = tmp_path / place.__name__, [0]

        def signalled(*arguments, count=count, at=at, **options):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place, "evaluate_model", signalled)
            stopped = run(folder)
        assert not stopped.finished
        assert not (folder / "config.json").exists()
        finished = run(folder, resume=True)
        assert finished.finished
        assert finished.evaluations == reference.evaluations
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "reference/model.safetensors").read_bytes()
