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
from whycam.training.checks import check_batch_size, check_crops
from whycam.training.device_dataset import DeviceDataset
from whycam.training.distributed import DistributedContext, distributed_context
from whycam.training.evaluation import VIEWS, Evaluation, StoppedError, View, evaluate_model
from whycam.training.history import EpochRecord
from whycam.training.loop import Loop
from whycam.training.recipe import Recipe
from whycam.training.run_options import RunOptions
from whycam.training.state import STATE_FILE, RunKey, parameter_digest, preprocess_key

NetworkFactory = Callable[[int], nn.Module]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        folder: holds ``model.safetensors``, ``config.json``, ``history.jsonl`` and the resumable state.
        recipe: as it was carried out ("auto" replaced by the choice).
        seed: of this run.
        finished: False if it was stopped; it can then be resumed.
        history: one record per finished epoch.
        evaluations: by view ("plain", "flip", "six"), of the last (averaged) weights in fp32; empty unless finished.
    """

    folder: Path
    recipe: Recipe
    seed: int
    finished: bool
    history: tuple[EpochRecord, ...]
    evaluations: Mapping[View, Evaluation]


@dataclass(frozen=True)
class _Task:
    """What is trained: the arguments of ``train`` that decide the weights."""

    recipe: Recipe
    train_source: ImageSource
    test_source: ImageSource
    seed: int
    preprocess: Preprocess
    network: NetworkFactory | None


def train(
    recipe: Recipe,
    train_source: ImageSource,
    test_source: ImageSource,
    out: str | Path,
    *,
    seed: int = 0,
    preprocess: Preprocess = CIFAR10,
    network: NetworkFactory | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> TrainingResult:
    """Train a network and write it, with its history, to ``out``.

    The state is saved at the start, every ``checkpoint_seconds`` of work and after every epoch. A run that was killed
    continues from it, on a CPU to bit-identical weights. SIGTERM or an interrupt saves the state and returns. Under
    ``torchrun`` all processes make the same call; after an elastic restart they resume by themselves.

    Args:
        recipe: how to train.
        train_source: the images to learn from, square and of ``preprocess.size``.
        test_source: the images to report on. They never influence the training; hold some training images out
            (``hold_out``) for tuning.
        out: a folder that does not exist or is empty, or, to resume, one that holds a run.
        seed: of initial weights, order and augmentation.
        preprocess: normalization, saved with the weights.
        network: K, the number of classes → module, to train instead of ``recipe.architecture``.
        options: how the run is carried out: resume, device, progress, saving.
        changes: fields of ``RunOptions`` as keywords, such as ``resume=True`` or ``device="cpu"``.

    Raises:
        WhycamError: ``out``, the data, the recipe or the saved state do not fit together; the disk is full; or the
            training diverged. The last saved state is then complete.
    """
    options = dataclasses.replace(options or RunOptions(), **changes)
    out = Path(out)
    with distributed_context(options.device) as dist, stop_on_signal() as stop:
        recipe = dataclasses.replace(recipe, precision=resolve_precision(recipe, dist.device))
        task = _Task(recipe, train_source, test_source, seed, preprocess, network)
        loop = _prepare(task, out, dist, options, stop)
        # No process may change the folder before all have checked it.
        dist.barrier()
        with _resume_hint(out / STATE_FILE), cudnn_flags():
            if loop.options.resume:
                loop.load()
            else:
                loop.save()
            evaluations = _run(loop, task)
        dist.barrier()
    return TrainingResult(out, recipe, seed, evaluations is not None, tuple(loop.history), evaluations or {})


def _prepare(task: _Task, out: Path, dist: DistributedContext, options: RunOptions, stop: Callable[[], bool]) -> Loop:
    """Check the task, load the data and build the network; the folder is made last, so that an error leaves nothing."""
    recipe = task.recipe
    _check_classes(task.train_source, task.test_source)
    train_data = DeviceDataset(task.train_source, task.preprocess, dist.device, recipe.pad, recipe.pad_mode)
    test_data = DeviceDataset(task.test_source, task.preprocess, dist.device)
    check_crops(recipe, train_data)
    check_batch_size(recipe, dist)
    model = initial_model(recipe, len(task.train_source.classes), task.seed, dist.device, task.network)
    model = dist.convert_batchnorm(model, recipe)
    key = RunKey(
        recipe,
        task.seed,
        task.train_source.digest,
        task.test_source.digest,
        preprocess_key(task.preprocess),
        parameter_digest(model),
    )
    restarted = dist.restarts > 0 and (out / STATE_FILE).exists()
    options = dataclasses.replace(options, resume=options.resume or restarted)
    _check_folder(out, options.resume)
    return Loop(model, train_data, test_data, key, out, dist, options=options, stop=stop)


def _run(loop: Loop, task: _Task) -> dict[View, Evaluation] | None:
    """Train and evaluate; None if the run was stopped."""
    if not loop.run():
        return None
    try:
        return _finish(loop, task)
    except StoppedError:
        # All epochs are saved; resuming repeats only this evaluation.
        return None


def initial_model(
    recipe: Recipe, classes: int, seed: int, device: torch.device, network: NetworkFactory | None = None
) -> nn.Module:
    """The network before training. Its weights depend only on the seed, and torch's global generator is not used."""
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


def _finish(loop: Loop, task: _Task) -> dict[View, Evaluation]:
    """Evaluate the final (averaged) weights in fp32 and write them. If that was done before, read the result."""
    config = loop.folder / CONFIG_FILE
    written = read_config(config).training.get("evaluations", {}) if config.exists() else {}
    if all(view in written for view in VIEWS):
        return {view: Evaluation.from_dict(written[view]) for view in VIEWS}
    with loop.averaged_weights():
        evaluations = {
            view: evaluate_model(loop.model, loop.test_data, view=view, stop=loop.stop_requested) for view in VIEWS
        }
        if loop.dist.is_rank_zero:
            classes = tuple(task.train_source.classes)
            record = _training_record(loop, task, evaluations)
            spec = ModelSpec(loop.recipe.architecture, classes, task.preprocess, training=record)
            save_checkpoint(loop.folder, loop.model, spec)
    return evaluations


def _training_record(loop: Loop, task: _Task, evaluations: Mapping[View, Evaluation]) -> dict[str, Any]:
    """The entry "training" of ``config.json``."""
    return {
        "train_data": f"{task.train_source.name} ({task.train_source.split})",
        "test_data": f"{task.test_source.name} ({task.test_source.split})",
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
        "processes": loop.dist.world_size,
        "torch": torch.__version__,
        "evaluations": {view: result.to_dict() for view, result in evaluations.items()},
        "history": [record.to_dict() for record in loop.history],
    }


def _check_classes(train_source: ImageSource, test_source: ImageSource) -> None:
    if tuple(train_source.classes) != tuple(test_source.classes):
        raise WhycamError(
            f"the classes to train on ({', '.join(train_source.classes)}) are not those to test on "
            f"({', '.join(test_source.classes)}); give two splits of one data set"
        )


def _check_folder(out: Path, resume: bool) -> None:
    """Make ``out`` if it can hold this run; remove the partial files of a killed process."""
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
def _resume_hint(state_file: Path) -> Iterator[None]:
    """Add to the error of a full disk how the run can be resumed."""
    try:
        yield
    except NoSpaceError as error:
        if state_file.exists():
            raise NoSpaceError(f"{error} with --resume (resume=True)") from error
        raise


def cudnn_flags() -> contextlib.AbstractContextManager[None]:
    """The fastest cuDNN algorithms, but real fp32 instead of TF32; the caller's choice of determinism stays."""
    deterministic = torch.backends.cudnn.deterministic
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=deterministic, allow_tf32=False)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first SIGINT into a request to stop; the yielded function says whether there was one.

    Python delivers signals to its main thread only; in another thread this changes nothing.
    """
    requested = threading.Event()
    before: dict[int, Any] = {}

    def request(_number: int, _frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolve_precision(recipe: Recipe, device: torch.device) -> Literal["auto", "fp32", "bf16"]:
    """Replace "auto" by bf16 if the hardware supports it; emulated bf16 is slower than fp32."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
