"""Train a network by a recipe: set up, run the loop, write the result."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn

from whycam.data.preprocess import CIFAR10, Preprocess
from whycam.data.source import ImageSource
from whycam.device import device_name
from whycam.errors import NoSpaceError, WhycamError, near_misses
from whycam.files import writing
from whycam.models.checkpoint import CONFIG_FILE, ModelSpec, read_config, save_checkpoint
from whycam.models.resnet import ARCHITECTURES, zero_last_gains
from whycam.seeds import derive_seed
from whycam.training.checks import check_crops
from whycam.training.device_dataset import DeviceData
from whycam.training.distributed import processes
from whycam.training.evaluation import VIEWS, Evaluation, StoppedError, View, evaluate
from whycam.training.history import EpochRecord
from whycam.training.loop import Listener, Loop
from whycam.training.recipe import Recipe
from whycam.training.state import STATE_FILE, RunKey, layout_digest

Network = Callable[[int], nn.Module]


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        folder: where ``model.safetensors``, ``config.json``, ``history.jsonl`` and the resumable state lie.
        recipe: as it was carried out ("auto" replaced by what was chosen).
        seed: of this run.
        finished: False if it was stopped; it can be resumed then.
        history: one record per finished epoch.
        evaluations: by view ("plain", "flip", "six"), of the last (averaged) weights in fp32; empty unless finished.
    """

    folder: Path
    recipe: Recipe
    seed: int
    finished: bool
    history: tuple[EpochRecord, ...]
    evaluations: Mapping[View, Evaluation]


def train(
    recipe: Recipe,
    train_source: ImageSource,
    test_source: ImageSource,
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    on_progress: Listener | None = None,
    checkpoint_seconds: float = 300.0,
    checkpoint_epochs: bool = True,
    preprocess: Preprocess = CIFAR10,
    network: Network | None = None,
) -> TrainingResult:
    """Train a network and write it, with its history, to ``out``.

    The state is saved at the start, every ``checkpoint_seconds`` of work and after every epoch. A run that was
    killed continues from it, on a CPU to bit-identical weights. SIGTERM or an interrupt saves it and returns. Under
    ``torchrun`` all processes call this alike; after an elastic restart they resume by themselves.

    Args:
        recipe: how to train.
        train_source: the images to learn from, square and of ``preprocess.size``.
        test_source: the images to report on; never used to choose anything. Hold some out (``hold_out``) for tuning.
        out: a folder that does not exist or is empty, or with ``resume`` one that holds a run.
        seed: decides initial weights, order and augmentation.
        resume: continue the run in ``out``; data, recipe and seed must be the same.
        device: "auto", "cpu", "cuda", "cuda:N".
        on_progress: called in the first process with a ``Progress`` after steps (on a GPU, after every tenth) and
            with an ``EpochRecord`` after epochs.
        checkpoint_seconds: between saves within an epoch.
        checkpoint_epochs: save after every epoch; where one takes a second, writing the state takes as long, and the
            saves every ``checkpoint_seconds``, at a stop and at the end may do.
        preprocess: normalization, kept with the weights.
        network: K → module, to train something else than ``recipe.architecture``.

    Raises:
        WhycamError: ``out``, the data, the recipe or the saved state do not fit together; the disk is full; or the
            training diverged. What was last saved is intact then.
    """
    out = Path(out)
    with processes(device) as team, stop_on_signal() as stop:
        recipe = dataclasses.replace(recipe, precision=_precision(recipe, team.device))
        _check_classes(train_source, test_source)
        train_data = DeviceData(train_source, preprocess, team.device, recipe.pad, recipe.pad_mode)
        test_data = DeviceData(test_source, preprocess, team.device)
        check_crops(recipe, train_data)
        if recipe.batch_size < team.count:
            raise WhycamError(
                f"recipe: batch_size is {recipe.batch_size}, less than the {team.count} processes that share a batch; "
                "raise it or start fewer"
            )
        model = team.prepare(initial_model(recipe, len(train_source.classes), seed, team.device, network), recipe)
        key = RunKey(recipe, seed, train_source.digest, test_source.digest, str(preprocess), layout_digest(model))
        # Last, since it makes the folder: what is refused above leaves nothing behind.
        resume = resume or (team.restarts > 0 and (out / STATE_FILE).exists())
        _check_folder(out, resume)
        loop = Loop(
            model,
            train_data,
            test_data,
            key,
            out,
            team,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint_epochs=checkpoint_epochs,
            listener=on_progress if team.first else None,
            stop=stop,
        )
        # Every process has looked at the folder before the first one changes it.
        team.wait()
        with _resumable(out / STATE_FILE), _exact_arithmetic():
            if resume:
                loop.load()
            else:
                loop.save()
            finished = loop.run()
            try:
                evaluations = _finish(loop, train_source, test_source, preprocess) if finished else {}
            except StoppedError:
                # All epochs are done and saved: what is left to do is to evaluate.
                finished, evaluations = False, {}
        team.wait()
    return TrainingResult(out, recipe, seed, finished, tuple(loop.history), evaluations)


def initial_model(
    recipe: Recipe, classes: int, seed: int, device: torch.device, network: Network | None = None
) -> nn.Module:
    """The network before training; its weights depend on the seed alone, and torch's global state stays as it was."""
    build = network or ARCHITECTURES.get(recipe.architecture)
    if build is None:
        known = near_misses(recipe.architecture, ARCHITECTURES)
        raise WhycamError(f"recipe: there is no architecture {recipe.architecture!r}{known}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        model = build(classes)
    if recipe.zero_gain:
        zero_last_gains(model)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _finish(
    loop: Loop, train_source: ImageSource, test_source: ImageSource, preprocess: Preprocess
) -> dict[View, Evaluation]:
    """Evaluate the final (averaged) weights in fp32 and write them; what a finished run has written is read back."""
    config = loop.folder / CONFIG_FILE
    written = read_config(config).training.get("evaluations", {}) if config.exists() else {}
    if all(view in written for view in VIEWS):
        return {view: Evaluation.from_dict(written[view]) for view in VIEWS}
    with loop.averaged():
        evaluations = {view: evaluate(loop.model, loop.test, view=view, stop=loop.asked_to_stop) for view in VIEWS}
        if loop.processes.first:
            record = {
                "train_data": f"{train_source.name} ({train_source.split})",
                "test_data": f"{test_source.name} ({test_source.split})",
                **_record(loop, evaluations),
            }
            classes = tuple(train_source.classes)
            save_checkpoint(
                loop.folder, loop.model, ModelSpec(loop.recipe.architecture, classes, preprocess, training=record)
            )
    return evaluations


def _record(loop: Loop, evaluations: Mapping[View, Evaluation]) -> dict[str, Any]:
    """What ``config.json`` says about how the weights came about."""
    return {
        "recipe": loop.recipe.to_dict(),
        "seed": loop.seed,
        "epochs": loop.recipe.epochs,
        "weights": loop.recipe.averaging if loop.averager is not None else "last",
        "train_data_sha256": loop.key.data,
        "test_data_sha256": loop.key.test_data,
        "images": loop.images,
        "seconds": round(loop.seconds, 1),
        "device": loop.device.type,
        "hardware": device_name(loop.device),
        "processes": loop.processes.count,
        "torch": torch.__version__,
        "evaluations": {view: result.to_dict() for view, result in evaluations.items()},
        "history": [entry.to_dict() for entry in loop.history],
    }


def _check_classes(train_source: ImageSource, test_source: ImageSource) -> None:
    if tuple(train_source.classes) != tuple(test_source.classes):
        raise WhycamError(
            f"the classes to train on ({', '.join(train_source.classes)}) are not those to test on "
            f"({', '.join(test_source.classes)}); give two splits of one data set"
        )


def _check_folder(out: Path, resume: bool) -> None:
    """Whether ``out`` can take this run; what a killed process left half-written is removed."""
    state_file = out / STATE_FILE
    with writing(out):
        if resume:
            if not state_file.exists():
                raise WhycamError(f"{state_file}: there is no training state to resume; start without resuming")
        elif state_file.exists():
            raise WhycamError(f"{out}: already holds a training run; resume it or choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        for partial in out.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        if not resume and any(out.iterdir()):
            raise WhycamError(f"{out}: holds something else already; choose a new or an empty folder")


@contextlib.contextmanager
def _resumable(state_file: Path) -> Iterator[None]:
    """Say how a run goes on that ended for want of space."""
    try:
        yield
    except NoSpaceError as error:
        if state_file.exists():
            raise NoSpaceError(f"{error} with --resume (resume=True)") from error
        raise


def _exact_arithmetic() -> contextlib.AbstractContextManager[None]:
    """The fastest algorithms of cuDNN, without its TF32 in the place of fp32; the caller's determinism stays."""
    deterministic = torch.backends.cudnn.deterministic
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=deterministic, allow_tf32=False)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first SIGINT into a request to stop, which the yielded function answers.

    Python delivers signals to its main thread only; in another thread this changes nothing.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _precision(recipe: Recipe, device: torch.device) -> Literal["auto", "fp32", "bf16"]:
    """Replace "auto": bf16 where the hardware multiplies it; elsewhere it is emulated, and slower than fp32."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
