r"""Run the whole training program: sweep, seeds, the study's own recipe, ablations, and the table of all runs.

    python tools/training_program.py CIFAR10 --out DIR [--only sweep record long study ablation]

1. sweep: ``record`` trained on 45,000 images and evaluated on the held-out 5,000, without the test set. Sharpness,
   learning rates, hole and averaging are decided one after the other: each is tried with a few other values, and the
   next starts from the best by held-out accuracy (the mean of the three views, over ``--search-seeds`` seeds).
   ``--choose FIELD=VALUE …`` decides for yourself and skips the sweep.
2. record: ``--seeds`` seeds on all 50,000 images.
3. long: ``--seeds`` seeds of ``long`` with the sweep's values, except for its own hole, sharpness and peak rate.
4. study: exactly the study's recipe, one seed, for its test accuracy over the epochs.
5. ablation: ``record`` after the sweep, with one technique removed at a time, held-out, ``--ablation-seeds`` seeds.

Every run has a folder in DIR/held-out or DIR/test, named by its recipe and seed. The same command resumes the program
after a signal, a kill or ``--minutes``: finished runs are skipped. With ``--minutes`` the program saves and ends with
status 3 when the time is over; status 0 means that all is done. A run that diverges is marked in its folder and in the
table, and the next run starts. A folder that holds a run on other images or of another recipe is refused.
``DIR/table.md`` is rewritten after every run. Finished runs keep only their records (``config.json`` and
``history.jsonl``, some ten kilobytes); seed 0 on the test set also keeps its weights; ``--keep`` keeps everything. The
tables can be made again at any time:

    python tools/training_table.py DIR
    python tools/training_table.py DIR --trajectory

CIFAR10 is anything that ``whycam`` opens: the official archive or its folder, or Parquet. Needs only torch, numpy and
safetensors (Parquet: pyarrow). With half an hour on a GPU in commands of at most ten minutes, give the same command
three times, then pack the records into one small file. If an epoch takes a second there, a run takes about 20 s. The
ablations come last, one seed of all after the other, so a lack of time shortens only them.

    python tools/training_program.py data --out DIR --seeds 5 --ablation-seeds 2 --minutes 9
    tar czf records.tar.gz --exclude='*.pt' --exclude='*.safetensors' DIR

For a trial on a CPU (some thirty runs of a few steps):

    python tools/training_program.py CIFAR10 --out trial --seeds 2 --ablation-seeds 1 --limit 256 \
        --set epochs=1 batch_size=64 'crops=[[0,8]]'
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_table import CONFIG, DIVERGED, Run, ablations, changes, find_runs, read_run, table, trajectory

from whycam.data import ImageSource, open_source, take
from whycam.errors import DivergedError, WhycamError
from whycam.training import EpochRecord, Recipe, find_recipe, hold_out, train
from whycam.training.state import STATE_FILE

STEPS = ("sweep", "record", "long", "study", "ablation")
# The sweep decides line after line between the best so far and these changes to it.
SEARCH: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"sam_radius": 0.006}, {"sam_radius": 0.02}),
    ({"lr": 0.04, "other_rate": 22.0}, {"lr": 0.08, "other_rate": 11.0}),
    ({"cutout": 3}, {"cutout": 10}),
    ({"averaging_decay": 0.975},),
    ({"other_rate": 30.0},),
)
# Each removes one technique from ``record``.
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd", "lr": 0.4, "momentum": 0.9, "batch_size": 256},
    {"averaging": "none"},
    {"sam_radius": 0.0},
    {"flip": "random"},
    {"flip": "none"},
    {"cutout": 0},
    {"label_smoothing": 0.0},
    {"pad_mode": "zero"},
    {"decay_all": True},
    {"warmup": 0.0},
)
NOT_DONE = 3


class OutOfTimeError(Exception):
    """The time is over; everything is saved."""


@dataclass(frozen=True)
class Job:
    """One run: its recipe and seed, and whether it is evaluated on held-out training images or on the test set."""

    recipe: Recipe
    seed: int
    held_out: bool


@dataclass
class TrainingProgram:
    """The settings of all runs; ``deadline`` is in the seconds of ``time.monotonic``."""

    out: Path
    train: ImageSource
    test: ImageSource
    seeds: int
    ablation_seeds: int
    device: str
    search_seeds: int
    changes: Sequence[str]
    chosen: dict[str, Any] | None
    keep: bool
    deadline: float
    split: tuple[ImageSource, ImageSource] = field(init=False)

    def __post_init__(self) -> None:
        self.split = hold_out(self.train, max(1, len(self.train) // 10))

    def recipe(self, name: str, **values: Any) -> Recipe:
        """A recipe with a step's values; those of the command line override them."""
        given = {change.partition("=")[0].strip() for change in self.changes}
        return find_recipe(name, self.changes).override({name: v for name, v in values.items() if name not in given})

    def jobs(self, step: str) -> Iterator[Job]:
        """The runs of one step; the steps after the sweep start from its best values."""
        jobs = {"sweep": self.sweep, "record": self.record, "long": self.long, "study": self.study}
        return jobs.get(step, self.ablation)()

    def sweep(self) -> Iterator[Job]:
        """The search's runs; the values of each line are tried on the best of the lines before."""
        if self.chosen is not None:
            return
        for index, line in enumerate(SEARCH):
            best = self.searched(SEARCH[:index])
            for seed in range(self.search_seeds):
                for values in ({}, *line):
                    yield self.held_out(self.recipe("record", **(best | values)), seed)

    def record(self) -> Iterator[Job]:
        """The seeds of ``record``."""
        return (self.tested(self.recipe("record", **self.best()), seed) for seed in range(self.seeds))

    def long(self) -> Iterator[Job]:
        """The seeds of ``long``: its own hole and sharpness, since it sees every image more often; its rate scaled."""
        own = ("cutout", "sam_radius", "sam_from")
        values = {name: value for name, value in self.best().items() if name not in own}
        if "lr" in values:
            values["lr"] *= find_recipe("long").lr / find_recipe("record").lr
        return (self.tested(self.recipe("long", **values), seed) for seed in range(self.seeds))

    def study(self) -> Iterator[Job]:
        """The study's recipe, once."""
        yield self.tested(self.recipe("study"), 0)

    def ablation(self) -> Iterator[Job]:
        """``record`` without one technique at a time, and complete."""
        for seed in range(self.ablation_seeds):
            for values in ({}, *ABLATIONS):
                yield self.held_out(self.recipe("record", **(self.best() | values)), seed)

    def tested(self, recipe: Recipe, seed: int) -> Job:
        """A run on all training images; only seed 0 is evaluated after every epoch."""
        return Job(recipe if seed == 0 else recipe.override({"evaluate_every": recipe.epochs}), seed, held_out=False)

    def held_out(self, recipe: Recipe, seed: int) -> Job:
        """A run that is evaluated on held-out images, at its end."""
        return Job(recipe.override({"evaluate_every": recipe.epochs}), seed, held_out=True)

    def best(self) -> dict[str, Any]:
        """The values chosen on the command line, else those of the sweep so far."""
        return self.searched(SEARCH) if self.chosen is None else self.chosen

    def searched(self, lines: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """The decisions of some lines of the search; a line that is not finished decides nothing."""
        return functools.reduce(self.better, lines, {})

    def better(self, best: dict[str, Any], line: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The best of ``best`` and one line's changes to it, by held-out accuracy; the first of equals."""

        def accuracy(values: dict[str, Any]) -> float:
            recipe = self.recipe("record", **values)
            runs = [self.finished(self.held_out(recipe, seed)) for seed in range(self.search_seeds)]
            # The mean of the three views varies less between runs than each view.
            means = [0.0 if run is None else sum(run.accuracy.values()) / len(run.accuracy) for run in runs]
            return sum(means) / len(means)

        return max((best | values for values in ({}, *line)), key=accuracy)

    def folder(self, job: Job) -> Path:
        """The folder of a job, named by its recipe's changes to the preset and by its seed."""
        parts = [job.recipe.name, *(f"{name}={value}" for name, value in changes(job.recipe).items())]
        label = re.sub(r"[^A-Za-z0-9=.-]+", "_", "_".join(parts)).strip("_")
        return self.out / ("held-out" if job.held_out else "test") / label / f"seed-{job.seed}"

    def images(self, job: Job) -> tuple[ImageSource, ImageSource]:
        """The images for training and for evaluation."""
        return self.split if job.held_out else (self.train, self.test)

    def finished(self, job: Job) -> Run | None:
        """The run of a job that is finished, else None.

        Raises:
            WhycamError: the folder holds another run.
        """
        folder = self.folder(job)
        if not (folder / CONFIG).exists():
            return None
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["training"]
        digests = [record["train_data_sha256"], record["test_data_sha256"]]
        if digests != [source.digest for source in self.images(job)]:
            raise WhycamError(f"{folder}: holds a run on other images; give another --out")
        if changes(Recipe.from_dict(record["recipe"]), job.recipe):
            raise WhycamError(f"{folder}: holds a run of another recipe of that name; give another --out")
        return read_run(folder)

    def run(self, job: Job) -> None:
        """Train one job to its end; resume it if it was begun.

        Raises:
            OutOfTimeError: the time is over.
        """
        folder = self.folder(job)
        if self.finished(job) is not None or (folder / DIVERGED).exists():
            return
        if time.monotonic() >= self.deadline:
            raise OutOfTimeError
        began = time.monotonic()

        def on_progress(event: object) -> None:
            if isinstance(event, EpochRecord) and event.epoch in (1, job.recipe.epochs):
                share = "" if event.test_accuracy is None else f", {event.test_accuracy:.2%}"
                spent, name = time.monotonic() - began, folder.relative_to(self.out)
                sys.stderr.write(f"{name}: epoch {event.epoch} of {job.recipe.epochs}{share}, {spent:.0f} s\n")
            if time.monotonic() >= self.deadline:
                # The loop then saves and returns.
                signal.raise_signal(signal.SIGTERM)

        resume = (folder / STATE_FILE).exists()
        try:
            result = train(
                job.recipe, *self.images(job), folder, seed=job.seed, device=self.device, on_progress=on_progress,
                resume=resume, checkpoint_epochs=False,
            )  # fmt: skip
        except DivergedError as error:
            sys.stderr.write(f"{folder.relative_to(self.out)}: {error}\n")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / DIVERGED).write_text(f"{error}\n", encoding="utf-8")
            return
        if not result.finished:
            raise OutOfTimeError
        if not self.keep:
            (folder / STATE_FILE).unlink()
            if job.held_out or job.seed:
                (folder / "model.safetensors").unlink()
        (self.out / "table.md").write_text(self.tables(), encoding="utf-8")

    def tables(self) -> str:
        """All runs, the ablations of the sweep's recipe, and the trajectories."""
        runs = find_runs([self.out], required=False)  # all may have diverged in their first epoch
        tested = [run for run in runs if run.folder.is_relative_to(self.out / "test")]
        parts = {
            "Runs": table(runs),
            "What a change to the swept recipe does": ablations(runs, self.recipe("record", **self.best())),
            "Test accuracy on the way": trajectory(tested, (1, 5, 15, 20)),
        }
        return "\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def main() -> int:
    """Run the chosen steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", metavar="CIFAR10")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="these steps only")
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="of record and long (default: 5)")
    parser.add_argument("--ablation-seeds", type=int, default=5, metavar="K", help="of each ablation (default: 5)")
    parser.add_argument("--search-seeds", type=int, default=2, metavar="K", help="of each of the sweep's (default: 2)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="for every recipe")
    parser.add_argument("--choose", nargs="+", metavar="FIELD=VALUE", help="use these values and skip the sweep")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images of each split only")
    parser.add_argument("--minutes", type=float, metavar="M", help="save and end after so long (status 3)")
    parser.add_argument("--keep", action="store_true", help="keep every run's weights and resumable state")
    options = parser.parse_args()
    if options.search_seeds < 1:
        parser.error(f"argument --search-seeds: it must be at least 1, got {options.search_seeds}")
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    try:
        training, test = (open_source(options.cifar10, split) for split in ("train", "test"))
        if options.limit:
            training, test = take(training, options.limit), take(test, options.limit)
        chosen = None
        if options.choose:
            recipe = find_recipe("record", options.choose)
            names = [change.partition("=")[0].strip() for change in options.choose]
            chosen = {name: getattr(recipe, name) for name in names}
        options.out.mkdir(parents=True, exist_ok=True)
        program = TrainingProgram(
            options.out, training, test, options.seeds, options.ablation_seeds, options.device, options.search_seeds,
            options.set, chosen, options.keep, deadline,
        )  # fmt: skip
        for step in (step for step in STEPS if step in options.only):
            for job in program.jobs(step):
                program.run(job)
        sys.stdout.write(program.tables())
    except OutOfTimeError:
        sys.stderr.write("stopped and saved; the same command goes on\n")
        return NOT_DONE
    except WhycamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
