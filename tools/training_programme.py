"""The whole training programme in one go: sweep, seeds, ablations, the study's own recipe, and the table of all.

    python tools/training_programme.py CIFAR10 --out DIR [--only sweep record long ablation study] [--seeds 5]

1. sweep: peak rate × decay × smoothing × cutout for ``record``, each on 45,000 training images, judged on the
   held-out 5,000; the test set takes no part. The best by held-out accuracy goes on.
2. record and long: ``--seeds`` seeds each on all 50,000 images, evaluated once, after the last epoch.
3. ablation: ``record`` with one trick taken away at a time, held-out, ``--seeds`` seeds.
4. study: the study's recipe to the letter, one seed, for its trajectory.

Every run is a folder of its own and is resumed or skipped when the programme is started again, so it may be stopped at
any time. ``DIR/table.md`` is rewritten after every run. For a trial on a CPU:

    python tools/training_programme.py CIFAR10 --out trial --seeds 2 --limit 256 --set epochs=1 batch_size=64 --grid 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whycam.data import ImageSource, open_source, take
from whycam.training import RECIPES, Recipe, hold_out, train
from whycam.training.history import EpochRecord
from whycam.training.state import STATE_FILE

STEPS = ("sweep", "record", "long", "ablation", "study")
GRID: dict[str, tuple[Any, ...]] = {
    "lr": (0.2, 0.3, 0.4),
    "weight_decay": (5e-4, 1e-3),
    "label_smoothing": (0.1, 0.2),
    "cutout": (0, 6, 8),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no averaging": {"averaging": "none"},
    "random flips": {"flip": "random"},
    "no flips": {"flip": "none"},
    "no cutout": {"cutout": 0},
    "no label smoothing": {"label_smoothing": 0.0},
    "zero padding": {"pad_mode": "zero"},
    "decay on all parameters": {"decay_all": True},
    "decay through the gradient": {"decoupled": False},
    "no warm-up": {"warmup": 0.0},
}
PUBLISHED = (
    ("the study that whycam repeats", 20, "92.14", "–"),
    ("cifar10-zoo resnet18_94 (n=200)", 26, "93.44", "94.04"),
    ("cifar10-zoo resnet18_96 (n=3; flip n=100)", 80, "95.45", "95.88"),
    ("kuangliu, as its users run it", 200, "95.67", "–"),
    ("Cutout paper (n=5)", 200, "96.01", "–"),
)


@dataclass(frozen=True)
class Job:
    """One run: what it is part of, its folder's name, how and on what it is trained."""

    group: str
    name: str
    recipe: Recipe
    seed: int
    held_out: bool


@dataclass
class Programme:
    """Everything the runs share."""

    out: Path
    train: ImageSource
    test: ImageSource
    seeds: int
    device: str
    changes: list[str]
    grid: int | None

    def recipe(self, name: str, **values: Any) -> Recipe:
        """A recipe with a step's own values, then those of the command line."""
        changed = RECIPES[name].override(values)
        return changed.override(dict(change.split("=", 1) for change in self.changes))

    def jobs(self, step: str) -> Iterator[Job]:
        """The runs of one step; later steps start from the sweep's best where there is one."""
        best = self.best()
        if step == "sweep":
            points = list(itertools.product(*GRID.values()))
            for values in points if self.grid is None else points[:: max(1, len(points) // self.grid)][: self.grid]:
                point = dict(zip(GRID, values, strict=True))
                label = " ".join(f"{key}={value}" for key, value in point.items())
                yield Job("sweep", label, self.recipe("record", **point), 0, True)
        elif step in ("record", "long"):
            for seed in range(self.seeds):
                yield Job(step, step, self.recipe(step, **(best if step == "record" else {})), seed, False)
        elif step == "ablation":
            for label, values in {"record, all tricks": {}, **ABLATIONS}.items():
                for seed in range(self.seeds):
                    yield Job("ablation", label, self.recipe("record", **(best | values)), seed, True)
        else:
            yield Job("study", "study", self.recipe("study"), 0, False)

    def best(self) -> dict[str, Any]:
        """The sweep's best point by held-out accuracy; empty before there is one."""
        done = [row for row in self.results() if row["group"] == "sweep"]
        if not done:
            return {}
        recipe = max(done, key=lambda row: row["plain"])["recipe"]
        return {name: recipe[name] for name in GRID}

    def run(self, job: Job) -> None:
        """Train one job to its end, resuming what was begun."""
        folder = self.out / job.group / f"{job.name.replace(' ', '_')}-seed-{job.seed}"
        if (folder / "result.json").exists():
            return
        training, judge = hold_out(self.train, len(self.train) // 10) if job.held_out else (self.train, self.test)

        def tell(event: object) -> None:
            if isinstance(event, EpochRecord):
                share = "" if event.test_accuracy is None else f", {event.test_accuracy:.2%}"
                sys.stderr.write(f"{folder.name}: epoch {event.epoch} of {job.recipe.epochs}{share}\n")

        result = train(job.recipe, training, judge, folder, seed=job.seed, device=self.device, on_progress=tell,
                       resume=(folder / STATE_FILE).exists())  # fmt: skip
        if not result.finished:
            raise SystemExit("stopped; the same command goes on")
        row = {"group": job.group, "name": job.name, "seed": job.seed, "held_out": job.held_out,
               "recipe": result.recipe.to_dict(), "seconds": result.history[-1].seconds,
               "trajectory": [entry.test_accuracy for entry in result.history]}  # fmt: skip
        row |= {view: evaluation.accuracy for view, evaluation in result.evaluations.items()}
        (folder / "result.json").write_text(json.dumps(row) + "\n")
        (self.out / "table.md").write_text(self.table())

    def results(self) -> list[dict[str, Any]]:
        """Every finished run's row."""
        return [json.loads(path.read_text()) for path in sorted(self.out.glob("*/*/result.json"))]

    def table(self) -> str:
        """Recipe × epochs × n × mean ± sd for the three views × seconds per epoch, and the published numbers."""
        lines = ["| recipe | judged on | epochs | n | plain | flip | six views | seconds per epoch |", "|" + "---|" * 8]
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.results():
            groups.setdefault((row["group"], row["name"]), []).append(row)
        for (group, name), rows in groups.items():
            label = name if group in (name, "ablation") else f"{group}: {name}"
            judged = "held-out" if rows[0]["held_out"] else "test set"
            epochs = rows[0]["recipe"]["epochs"]
            views = " | ".join(spread([row[view] for row in rows]) for view in ("plain", "flip", "six"))
            pace = statistics.median(row["seconds"] for row in rows) / epochs
            lines.append(f"| {label} | {judged} | {epochs} | {len(rows)} | {views} | {pace:.1f} |")
        for name, epochs, plain, flip in PUBLISHED:
            lines.append(f"| {name} (published) | test set | {epochs} | | {plain} | {flip} | – | |")
        return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation in percent."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def main() -> None:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--grid", type=int, help="try only so many points of the sweep")
    parser.add_argument("--limit", type=int, help="use the first N images of each split only")
    options = parser.parse_args()
    training, test = (open_source(options.cifar10, split) for split in ("train", "test"))
    if options.limit:
        training, test = take(training, options.limit), take(test, options.limit)
    options.out.mkdir(parents=True, exist_ok=True)
    programme = Programme(options.out, training, test, options.seeds, options.device, options.set, options.grid)
    for step in options.only:
        for job in programme.jobs(step):
            programme.run(job)
    sys.stdout.write(programme.table())


if __name__ == "__main__":
    main()
