"""Whole runs: the files they write, that they learn, and their errors."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, RECIPE, Tiny, real, run, small, small_resnet, without_norm

import whycam
from whycam.errors import WhycamError
from whycam.models import load
from whycam.models.resnet import resnet18
from whycam.training import RECIPES, Recipe, evaluate_model, read_history, train, train_seeds
from whycam.training.device_dataset import DeviceDataset
from whycam.training.evaluation import VIEWS, Evaluation
from whycam.training.history import EpochRecord, StepProgress
from whycam.training.loop import Loop
from whycam.training.state import load_state
from whycam.training.train import initial_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "deep" / "run"
    seen = []
    return run(folder, on_progress=seen.append), seen


def test_run_folder_and_record(finished):
    result, _ = finished
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {"state.pt", "history.jsonl", "model.safetensors", "config.json"}
    record = json.loads((folder / "config.json").read_text())["training"]
    assert Recipe.from_dict(record["recipe"]) == result.recipe == RECIPE
    assert record["train_data_sha256"] == small(0, 256).digest
    assert record["test_data_sha256"] == small(900, 1000, "test").digest
    assert (record["seed"], record["images"], record["weights"]) == (0, 4 * 256, "ema")
    assert [EpochRecord.from_dict(entry) for entry in record["history"]] == list(result.history)
    assert read_history(folder) == list(result.history)
    # The written weights have the recorded scores.
    network = Tiny(10)
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folder / "model.safetensors"))
    data = DeviceDataset(small(900, 1000, "test"), PREPROCESS, torch.device("cpu"))
    for view in VIEWS:
        assert evaluate_model(network, data, view=view) == result.evaluations[view]
        assert Evaluation.from_dict(record["evaluations"][view]) == result.evaluations[view]
    state = load_state(folder / "state.pt")
    assert all(torch.equal(value, state.tensors["average"][name]) for name, value in network.state_dict().items())


def test_progress_and_history_agree(finished):
    result, seen = finished
    steps = [event for event in seen if isinstance(event, StepProgress)]
    epochs = [event for event in seen if isinstance(event, EpochRecord)]
    assert [(s.epoch, s.step) for s in steps] == [(e, s) for e in range(1, 5) for s in range(1, 9)]
    assert epochs == list(result.history)
    for record in epochs:
        mine = [step for step in steps if step.epoch == record.epoch]
        assert record.train_loss == pytest.approx(np.mean([step.batch_loss for step in mine]))
        assert record.train_loss == pytest.approx(mine[-1].loss)
        assert record.train_accuracy == mine[-1].accuracy
        assert record.max_lr == max(step.lr for step in mine)
        assert record.lr == mine[-1].lr
        assert record.images == record.epoch * 256
        assert record.test_images == 100
    assert [record.size for record in epochs] == [12, 12, 16, 16]
    assert steps[-1].seconds_left == 0
    assert all(step.images_per_second > 0 and step.seconds_left >= 0 for step in steps)


def test_runs_are_reproducible_and_touch_no_global_state(finished, tmp_path):
    first, _ = finished
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = run(tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert (again.folder / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()
    other = run(tmp_path / "other", seed=1)
    assert (other.folder / "model.safetensors").read_bytes() != (first.folder / "model.safetensors").read_bytes()


def test_evaluate_every(tmp_path):
    history = run(tmp_path / "run", recipe=RECIPE.override({"evaluate_every": 3})).history
    assert [record.test_accuracy is not None for record in history] == [False, False, True, True]
    assert read_history(tmp_path / "run") == list(history)


def test_drop_last(tmp_path):
    result = run(tmp_path / "all", images=250, recipe=RECIPE.override({"drop_last": False, "epochs": 1}))
    assert result.history[0].images == 250
    result = run(tmp_path / "whole", images=250, recipe=RECIPE.override({"epochs": 1}))
    assert result.history[0].images == 224


def test_load_reads_a_trained_checkpoint(tmp_path):
    recipe = Recipe(name="two steps", epochs=1, batch_size=4, crops=((0, 8),), precision="fp32")
    result = train(recipe, real(0, 8), real(8, 12, "test"), tmp_path / "run", device="cpu")
    model, spec = load(tmp_path / "run")
    assert spec.classes == real(0, 1).classes
    assert spec.training["recipe"]["name"] == "two steps"
    assert (
        evaluate_model(model, DeviceDataset(real(8, 12, "test"), spec.preprocess, torch.device("cpu")))
        == (result.evaluations["plain"])
    )
    assert whycam.load(tmp_path / "run")[1] == spec


def test_bf16_trains_with_fp32_weights(tmp_path):
    result = run(tmp_path / "run", recipe=RECIPE.override({"precision": "bf16"}))
    weights = load_state(tmp_path / "run" / "state.pt").tensors["model"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    reference = run(tmp_path / "fp32")
    assert result.history[0].train_loss == pytest.approx(reference.history[0].train_loss, rel=0.02)
    assert result.history[0].train_loss != reference.history[0].train_loss


def test_auto_precision_is_resolved_in_the_record(tmp_path):
    result = run(tmp_path / "run", recipe=RECIPE.override({"precision": "auto", "epochs": 1}))
    assert result.recipe.precision in ("fp32", "bf16")
    assert load_state(tmp_path / "run" / "state.pt").key["recipe"]["precision"] == result.recipe.precision


def test_the_loop_overfits_256_real_images(tmp_path):
    recipe = Recipe(
        name="overfit", epochs=40, batch_size=64, lr=0.1, weight_decay=0, label_smoothing=0, pad=0, flip="none",
        averaging="none", precision="fp32", evaluate_every=40,
    )  # fmt: skip
    images = real(0, 256)
    result = train(recipe, images, images, tmp_path / "run", device="cpu", network=small_resnet)
    assert result.evaluations["plain"].correct == 256


@pytest.mark.slow
def test_resnet18_overfits_256_real_images(tmp_path):
    # With lr 0.05 and 24 steps of warm-up the loss first rises to 4, and 15 epochs are then too few.
    recipe = RECIPES["cpu"].override(
        {"epochs": 15, "batch_size": 32, "lr": 0.02, "weight_decay": 0, "label_smoothing": 0, "pad": 0, "flip": "none",
         "averaging": "none", "crops": [[0, 0]], "evaluate_every": 15}
    )  # fmt: skip
    images = real(0, 256)
    result = train(recipe, images, images, tmp_path / "run", device="cpu")
    assert result.evaluations["plain"].correct == 256


@pytest.mark.slow
def test_after_10_000_images_the_cpu_recipe_is_far_above_chance(cifar10, tmp_path):
    def stop(event):
        if isinstance(event, StepProgress) and event.step * 128 >= 10_000:
            os.kill(os.getpid(), signal.SIGTERM)

    train_source, test_source = (whycam.open_source(cifar10, split=split) for split in ("train", "test"))
    # One thread per core: more would wait for each other.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result = train(RECIPES["cpu"], train_source, test_source, tmp_path / "run", device="cpu", on_progress=stop)
    assert not result.finished
    state = load_state(tmp_path / "run" / "state.pt")
    assert 10_000 <= state.images < 10_128
    model = initial_model(result.recipe, 10, 0, torch.device("cpu"))
    model.load_state_dict(state.tensors["average"])
    data = DeviceDataset(test_source, whycam.data.CIFAR10, torch.device("cpu"))
    accuracy = evaluate_model(model, data, bf16=True).accuracy
    torch.set_num_threads(1)
    assert accuracy >= 0.3


def test_divergence_error_keeps_the_last_state(tmp_path):
    """Without BatchNorm a huge learning rate soon gives infinite values."""
    recipe = RECIPE.override({"lr": 1e3, "lr_start": 1e-6, "warmup": 0.9, "decoupled": False})
    with pytest.raises(WhycamError) as error:
        run(tmp_path / "run", recipe=recipe, network=without_norm, checkpoint_seconds=0.0)
    message = str(error.value)
    assert message.startswith("training diverged: ")
    assert "the loss is NaN or infinite at epoch " in message or "the weights are NaN or infinite at epoch " in message
    assert "start again in another folder with a lower lr (now 1000) or a longer warmup" in message
    assert message.endswith(f"the last good state is {tmp_path / 'run' / 'state.pt'}")
    state = load_state(tmp_path / "run" / "state.pt")
    assert all(bool(value.isfinite().all()) for value in state.tensors["model"].values())
    assert state.images > 0


def test_wrong_data_errors(tmp_path):
    out = tmp_path / "run"
    sample = small(0, 32)
    for sources, message in (
        ((real(0, 32), sample), "CIFAR-10 sample (train): images are 32×32; training needs them to be 16×16"),
        ((small(0, 0), sample), "CIFAR-10 sample (train): there are no images to train or test on"),
        ((sample, small(0, 0, "test")), "CIFAR-10 sample (test): there are no images to train or test on"),
    ):
        with pytest.raises(WhycamError) as error:
            train(RECIPE, *sources, out, preprocess=PREPROCESS, network=Tiny, device="cpu")
        assert str(error.value) == message
    other = whycam.data.ArraySource(sample.images, sample.labels, tuple("abcdefghij"), sample.ids, "letters", "test")
    with pytest.raises(WhycamError, match=r"the classes to train on \(airplane, .*\) are not those to test on \(a, b"):
        train(RECIPE, sample, other, out, preprocess=PREPROCESS, network=Tiny, device="cpu")
    with pytest.raises(WhycamError, match="pad is 16; reflecting needs it to be below the images' 16 pixels"):
        run(out, recipe=RECIPE.override({"pad": 16}))
    with pytest.raises(WhycamError, match="crops of 40 pixels do not fit into images of 16"):
        run(out, recipe=RECIPE.override({"crops": [[0, 40]]}))
    with pytest.raises(WhycamError, match=r"there is no architecture 'resnet81' \(did you mean resnet18"):
        train(RECIPE.override({"architecture": "resnet81"}), sample, sample, out, preprocess=PREPROCESS, device="cpu")
    with pytest.raises(WhycamError, match="device 'gpu' is not"):
        run(out, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(WhycamError, match=r"device cuda:0 is not there \(0 GPUs\); give another device"):
            run(out, device="cuda")
    assert not out.exists() or not list(out.iterdir())


def test_wrong_folder_errors(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(WhycamError, match="thesis: holds something else already; choose a new or an empty folder"):
        run(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    with pytest.raises(WhycamError, match=r"chapter\.txt.*: cannot be written: "):
        run(tmp_path / "thesis" / "chapter.txt" / "run")


def test_several_seeds(tmp_path):
    def one(seeds, **options):
        return train_seeds(
            RECIPE.override({"epochs": 1}), small(0, 256), small(900, 1000, "test"), tmp_path / "seeds", seeds=seeds,
            preprocess=PREPROCESS, network=Tiny, device="cpu", **options,
        )  # fmt: skip

    def stop_at_once(event):
        if isinstance(event, StepProgress) and (tmp_path / "seeds" / "seed-5").exists() and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = one([0, 5, 2], on_progress=stop_at_once)
    assert [run.finished for run in stopped.runs] == [True, False]
    assert not stopped.finished
    assert not (tmp_path / "seeds" / "seeds.json").exists()
    result = one([0, 5, 2], resume=True)
    assert result.finished
    values = [run.evaluations["plain"].accuracy for run in result.runs]
    spread = result.accuracy["plain"]
    assert (spread.n, list(spread.values)) == (3, values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))
    assert str(spread) == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}% (n=3)"
    summary = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    assert summary["accuracy"]["plain"]["values"] == values
    assert summary["seeds"] == [0, 5, 2]
    with pytest.raises(WhycamError, match=r"seeds are \[1, 1\]; name at least one, and each once"):
        one([1, 1])


def test_a_run_frees_its_data_and_network(tmp_path, monkeypatch):
    """When it returns, not at the next garbage collection: the next seed's run needs the memory."""
    found = []
    plain = Loop.run

    def seen(self):
        found.append(weakref.ref(self))
        return plain(self)

    monkeypatch.setattr(Loop, "run", seen)
    gc.collect()
    gc.disable()
    try:
        for name in ("a", "b"):
            run(tmp_path / name, recipe=RECIPE.override({"epochs": 1}))
        # The second run: torch imports its compiler during the first one and keeps references to its frames.
        assert found[1]() is None
    finally:
        gc.enable()


def test_importing_the_library_does_not_import_training():
    code = "import sys, whycam; print([m for m in sys.modules if m.startswith('whycam.training')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_initial_weights_depend_only_on_the_seed():
    recipe, cpu = RECIPES["record"], torch.device("cpu")
    a, b, c = (initial_model(recipe, 10, seed, cpu).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])
    assert a.keys() == resnet18(10).state_dict().keys()
    assert a["layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
