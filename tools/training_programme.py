r"""The whole training programme: sweep, seeds, the study's own recipe, ablations, and the table of all.

    python tools/training_programme.py CIFAR10 --out DIR [--only sweep record study long ablation]

1. sweep: peak rate × decay × smoothing × cutout for ``record``, each on 45,000 training images, judged on the
   held-out 5,000; the test set takes no part. The best by held-out accuracy goes on. ``--grid N`` draws N of the 36.
2. record: ``--seeds`` seeds on all 50,000 images, tested after every epoch, reported after the last.
3. study: the study's recipe to the letter, one seed, for its trajectory.
4. long: ``--seeds`` seeds, as record.
5. ablation: the swept ``record`` with one trick taken away at a time, held-out, ``--ablation-seeds`` seeds.

Every run lies in DIR/held-out or DIR/test under its recipe's label and seed, and is resumed or skipped when the
programme is started again: the same command goes on where the last one was stopped, by a signal, a kill or
``--minutes``, after which it saves and ends with status 3 (0: all is done). A run that diverges is noted as such, in
its folder and in the table, and the others go on; a run that is there already but of other images or of another recipe
of that name is refused. ``DIR/table.md`` is rewritten after every
run. Of a finished run only the records are kept (``config.json`` and ``history.jsonl``, some ten kilobytes), and the
weights of seed 0 on the test set; ``--keep`` keeps all. The tables can be made again from them at any time:

    python tools/training_table.py DIR
    python tools/training_table.py DIR --trajectory

CIFAR10 is whatever ``whycam`` opens: the official archive or its folder, or Parquet. Needs torch, numpy and safetensors
alone (Parquet: pyarrow). On a GPU with half an hour in commands of at most ten minutes, three times the same command,
and then the records in one small file (a run takes about 20 s there if an epoch takes a second; the ablations come
last, one seed of all after the other, so that it is they that are cut short):

    python tools/training_programme.py data --out DIR --grid 12 --seeds 5 --ablation-seeds 2 --minutes 9
    tar czf records.tar.gz --exclude='*.pt' --exclude='*.safetensors' DIR

For a trial on a CPU (about twenty runs of a few steps):

    python tools/training_programme.py CIFAR10 --out trial --seeds 2 --ablation-seeds 1 --limit 256 --grid 2 \
        --set epochs=1 batch_size=64 'crops=[[0,8]]'
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
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

STEPS = ("sweep", "record", "study", "long", "ablation")
GRID: dict[str, tuple[Any, ...]] = {
    "lr": (0.1, 0.2, 0.4),
    "weight_decay": (5e-4, 1e-3),
    "label_smoothing": (0.1, 0.2),
    "cutout": (0, 6, 8),
}
# Each takes one trick of ``record`` away.
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"averaging": "none"},
    {"flip": "random"},
    {"flip": "none"},
    {"cutout": 0},
    {"label_smoothing": 0.0},
    {"pad_mode": "zero"},
    {"decay_all": True},
    {"decoupled": False},
    {"warmup": 0.0},
)
NOT_DONE = 3


class OutOfTimeError(Exception):
    """The minutes are over; everything is saved."""


@dataclass(frozen=True)
class Job:
    """One run: how, with which seed, and whether it is judged on held-out training images or on the test set."""

    recipe: Recipe
    seed: int
    held_out: bool


@dataclass
class Programme:
    """Everything the runs share; ``deadline`` is in the seconds of ``time.monotonic``."""

    out: Path
    train: ImageSource
    test: ImageSource
    seeds: int
    ablation_seeds: int
    device: str
    changes: Sequence[str]
    grid: int | None
    keep: bool
    deadline: float
    split: tuple[ImageSource, ImageSource] = field(init=False)

    def __post_init__(self) -> None:
        self.split = hold_out(self.train, max(1, len(self.train) // 10))

    def recipe(self, name: str, **values: Any) -> Recipe:
        """A recipe with a step's own values, then those of the command line."""
        return find_recipe(name, [*(f"{field}={value}" for field, value in values.items()), *self.changes])

    def jobs(self, step: str) -> Iterator[Job]:
        """The runs of one step; later steps start from the sweep's best where there is one."""
        if step == "sweep":
            yield from self.sweep()
        elif step in ("record", "long"):
            for seed in range(self.seeds):
                yield Job(self.recipe(step, **(self.best() if step == "record" else {})), seed, held_out=False)
        elif step == "study":
            yield Job(self.recipe("study"), 0, held_out=False)
        else:
            for seed in range(self.ablation_seeds):
                for values in ({}, *ABLATIONS):
                    yield Job(self.recipe("record", **(self.best() | values)), seed, held_out=True)

    def sweep(self) -> Iterator[Job]:
        """The points of the grid, or those that are drawn of it."""
        points = list(itertools.product(*GRID.values()))
        # A random part tries more values of each field than a smaller grid does, and the best is still one of the grid.
        for values in points if self.grid is None else random.Random(0).sample(points, min(self.grid, len(points))):
            yield Job(self.recipe("record", **dict(zip(GRID, values, strict=True))), 0, held_out=True)

    def best(self) -> dict[str, Any]:
        """The sweep's best point by held-out accuracy, the first of equals; empty before there is one."""
        done = [run for job in self.sweep() if (run := self.finished(job)) is not None]
        if not done:
            return {}
        recipe = max(done, key=lambda run: run.accuracy["plain"]).recipe
        return {name: getattr(recipe, name) for name in GRID}

    def folder(self, job: Job) -> Path:
        """Where a job's run lies: its recipe, as far as it is not the preset's, and its seed."""
        parts = [job.recipe.name, *(f"{name}={value}" for name, value in changes(job.recipe).items())]
        label = re.sub(r"[^A-Za-z0-9=.-]+", "_", "_".join(parts)).strip("_")
        return self.out / ("held-out" if job.held_out else "test") / label / f"seed-{job.seed}"

    def images(self, job: Job) -> tuple[ImageSource, ImageSource]:
        """What a job learns from and what it is judged on."""
        return self.split if job.held_out else (self.train, self.test)

    def finished(self, job: Job) -> Run | None:
        """The run of a job that has been done.

        Raises:
            WhycamError: what lies there is another run.
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
        """Train one job to its end, resuming what was begun.

        Raises:
            OutOfTimeError: the minutes are over.
        """
        folder = self.folder(job)
        if self.finished(job) is not None or (folder / DIVERGED).exists():
            return
        if time.monotonic() >= self.deadline:
            raise OutOfTimeError
        began = time.monotonic()

        def tell(event: object) -> None:
            if isinstance(event, EpochRecord) and event.epoch in (1, job.recipe.epochs):
                share = "" if event.test_accuracy is None else f", {event.test_accuracy:.2%}"
                spent, name = time.monotonic() - began, folder.relative_to(self.out)
                sys.stderr.write(f"{name}: epoch {event.epoch} of {job.recipe.epochs}{share}, {spent:.0f} s\n")
            if time.monotonic() >= self.deadline:
                # The loop takes it as a request to save and return.
                signal.raise_signal(signal.SIGTERM)

        resume = (folder / STATE_FILE).exists()
        try:
            result = train(
                job.recipe, *self.images(job), folder, seed=job.seed, device=self.device, on_progress=tell,
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
        """All runs, the ablations of the swept recipe, and the trajectories."""
        runs = find_runs([self.out], required=False)  # all of them may have diverged within an epoch
        tested = [run for run in runs if run.folder.is_relative_to(self.out / "test")]
        parts = {
            "Runs": table(runs),
            "What a change to the swept recipe does": ablations(runs, self.recipe("record", **self.best())),
            "Test accuracy on the way": trajectory(tested, (1, 5, 15, 20)),
        }
        return "\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def main() -> int:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", metavar="CIFAR10")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="these steps only")
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="of record and long (default: 5)")
    parser.add_argument("--ablation-seeds", type=int, default=5, metavar="K", help="of each ablation (default: 5)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="change every recipe")
    parser.add_argument("--grid", type=int, metavar="N", help="try only N points of the sweep, drawn once and for all")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images of each split only")
    parser.add_argument("--minutes", type=float, metavar="M", help="save and end after so long (status 3)")
    parser.add_argument("--keep", action="store_true", help="keep every run's weights and resumable state")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    try:
        training, test = (open_source(options.cifar10, split) for split in ("train", "test"))
        if options.limit:
            training, test = take(training, options.limit), take(test, options.limit)
        options.out.mkdir(parents=True, exist_ok=True)
        programme = Programme(
            options.out, training, test, options.seeds, options.ablation_seeds, options.device, options.set,
            options.grid, options.keep, deadline,
        )  # fmt: skip
        for step in (step for step in STEPS if step in options.only):
            for job in programme.jobs(step):
                programme.run(job)
        sys.stdout.write(programme.tables())
    except OutOfTimeError:
        sys.stderr.write("stopped and saved; the same command goes on\n")
        return NOT_DONE
    except WhycamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
