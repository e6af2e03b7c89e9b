"""``whycam train``, ``lr-find`` and ``recipes``."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from whycam.cli import console
from whycam.cli.exit_codes import EXIT_INTERRUPTED
from whycam.data import ImageSource, open_source, take
from whycam.data.preprocess import CIFAR10
from whycam.device import reuse_freed_memory
from whycam.errors import WhycamError, require_study_packages
from whycam.files import write_bytes, writing
from whycam.training import (
    RECIPES,
    EpochRecord,
    Recipe,
    RunOptions,
    SeedsResult,
    StepProgress,
    TrainingResult,
    find_recipe,
    hold_out,
    lr_find as range_test,
    read_history,
    train as train_once,
    train_seeds,
)
from whycam.training.distributed import launched_as_rank_zero, rank_zero_errors
from whycam.training.history import TrainingCallback
from whycam.training.plots import draw_curves, draw_lr_find, write_figure
from whycam.training.progress import live_view, tensorboard
from whycam.training.state import STATE_FILE

CURVES = "curves.png"


def train(options: Namespace) -> None:
    """Train a network by a recipe."""
    out = Path(options.out)
    try:
        with rank_zero_errors():
            _train(options, out)
    except KeyboardInterrupt as stopped:
        if not launched_as_rank_zero():
            raise SystemExit(EXIT_INTERRUPTED) from stopped
        kept = any((folder / STATE_FILE).exists() for folder in (out, *out.glob("seed-*")))
        if not kept:
            raise KeyboardInterrupt("nothing had been saved yet") from stopped
        # After the first interrupt the run is saved and named in the exception; the second one comes without a name.
        state = f"{stopped} is saved" if stopped.args else f"{out} is as it was last saved"
        raise KeyboardInterrupt(f"{state}; the same command with --resume continues it") from stopped


def _train(options: Namespace, out: Path) -> None:
    require_study_packages("training on the command line")
    recipe = find_recipe(options.recipe, options.set)
    if options.seeds is not None and options.seeds < 1:
        raise WhycamError(f"--seeds must be at least 1, got {options.seeds}")
    sources = _sources(options)
    reuse_freed_memory()
    with ExitStack() as stack:
        log = RunLog(stack, events=options.tensorboard) if launched_as_rank_zero() else None
        run_options = RunOptions(resume=options.resume, device=options.device, on_progress=log)
        if options.seeds is None:
            if log is not None:
                log.begin(out)
            runs = [train_once(recipe, *sources, out, seed=options.seed, options=run_options)]
            summary = None
        else:
            seeds = range(options.seed, options.seed + options.seeds)
            on_seed = None if log is None else log.begin_seed
            summary = train_seeds(
                recipe, *sources, out, seeds=seeds, on_seed=on_seed, resume=options.resume, options=run_options
            )
            runs = list(summary.runs)
    if not launched_as_rank_zero():
        return
    if not runs[-1].finished:
        raise KeyboardInterrupt(runs[-1].folder)
    if options.json:
        console.say_json(_result_json(runs, summary))
    else:
        _print_results(runs, summary)


def _print_results(runs: list[TrainingResult], summary: SeedsResult | None) -> None:
    for run in runs:
        console.say(f"seed {run.seed}: {_accuracies(run)}")
        console.say(f"  checkpoint: {run.folder}")
        console.say(f"  curves:     {run.folder / CURVES}")
    if summary is not None:
        for view, spread in summary.accuracy.items():
            console.say(f"{view:<5} {spread}")


class RunLog:
    """The callback of a run: prints the study's log, draws the curves and, if asked for, writes TensorBoard events."""

    def __init__(self, stack: ExitStack, *, events: bool) -> None:
        self._view = stack.enter_context(live_view())
        self._events = stack.enter_context(ExitStack()) if events else None
        self._event_log: TrainingCallback | None = None
        self._folder: Path | None = None

    def __call__(self, event: StepProgress | EpochRecord) -> None:
        """Handle one event."""
        self._view(event)
        if self._event_log is not None:
            self._event_log(event)
        if isinstance(event, EpochRecord) and self._folder is not None:
            # After every epoch, so that a run that ends early has its curves too.
            write_figure(draw_curves(read_history(self._folder)), self._folder / CURVES)

    def begin(self, folder: Path) -> None:
        """Direct the next events to the run in ``folder``."""
        self._folder = folder
        if self._events is not None:
            self._events.close()
            self._event_log = self._events.enter_context(tensorboard(folder / "tensorboard"))

    def begin_seed(self, seed: int, folder: Path) -> None:
        """The same for the run of one seed, which is printed."""
        console.note(f"seed {seed}")
        self.begin(folder)


def lr_find(options: Namespace) -> None:
    """Find a learning rate by a range test."""
    require_study_packages("the learning-rate range test")
    recipe = find_recipe(options.recipe, options.set)
    source = open_source(options.data, "train", size=CIFAR10.size)
    reuse_freed_memory()
    out = Path(options.out)
    with _folder(out), console.progress() as show:
        result = range_test(
            recipe,
            source,
            seed=options.seed,
            device=options.device,
            start=options.start,
            end=options.end,
            iterations=options.iterations,
            on_step=lambda done: show("range test", done, options.iterations),
        )
    figure = write_figure(draw_lr_find(result), out / "lr-find.png")
    numbers = dataclasses.asdict(result) | {"recipe": recipe.to_dict(), "seed": options.seed}
    write_bytes(out / "lr-find.json", (json.dumps(numbers, indent=1) + "\n").encode())
    if options.json:
        console.say_json({"suggestion": result.suggestion, "exploded": result.exploded, "figure": str(figure)})
        return
    ended = "the loss exploded" if result.exploded else "the range was passed"
    console.say(f"suggested peak learning rate: {result.suggestion:.3g} ({len(result.lrs)} iterations, until {ended})")
    console.say(f"figure:  {figure}")
    console.say(f"numbers: {out / 'lr-find.json'}")


def recipes(options: Namespace) -> None:
    """List the recipes and their fields."""
    if options.json:
        console.say_json({"recipes": [recipe.to_dict() for recipe in RECIPES.values()]})
        return
    defaults = Recipe().to_dict()
    for name, recipe in RECIPES.items():
        _say_fields(name, {field: value for field, value in recipe.to_dict().items() if value != defaults[field]})
    _say_fields("every other field", defaults)


def _say_fields(title: str, values: dict[str, Any]) -> None:
    texts = [f"{field}={_text(value)}" for field, value in values.items() if field != "name"]
    console.say(f"{title}: {', '.join(texts)}")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make ``out`` before the work, to fail early if that is impossible; remove it if the work fails."""
    with writing(out):
        before = out.exists()
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not before:
            with suppress(OSError):
                out.rmdir()
        raise


def _sources(options: Namespace) -> tuple[ImageSource, ImageSource]:
    """The images to train on, and those to report on."""
    training = open_source(options.data, "train", size=CIFAR10.size)
    if options.limit is not None:
        if options.limit < 1:
            raise WhycamError(f"--limit must be at least 1, got {options.limit}")
        training = take(training, options.limit)
    if options.validate is not None:
        return hold_out(training, options.validate)
    return training, open_source(options.data, "test", size=CIFAR10.size, classes=training.classes)


def _accuracies(run: TrainingResult) -> str:
    plain = run.evaluations["plain"]
    others = ", ".join(f"{view} {console.percent(run.evaluations[view].accuracy)}" for view in ("flip", "six"))
    return (
        f"{plain.correct} of {plain.images} right, accuracy {console.percent(plain.accuracy)} "
        f"(with test-time augmentation: {others}), calibration error {plain.ece:.4f}"
    )


def _result_json(runs: list[TrainingResult], summary: SeedsResult | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "runs": [
            {
                "seed": run.seed,
                "checkpoint": str(run.folder),
                "curves": str(run.folder / CURVES),
                "evaluations": {view: result.to_dict() for view, result in run.evaluations.items()},
            }
            for run in runs
        ]
    }
    if summary is not None:
        facts["accuracy"] = {view: vars(spread) for view, spread in summary.accuracy.items()}
    return facts


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)
