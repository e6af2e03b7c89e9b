"""A table of training runs, beside the published numbers: recipe × epochs × n × mean ± sd × time × hardware.

    python tools/training_table.py DIR [DIR ...]
    python tools/training_table.py DIR --trajectory 1 5 15 20
    python tools/training_table.py DIR --ablations record lr=0.3

All runs in a DIR and its subfolders count, whether made by ``whycam train`` or by ``training_program.py``, finished or
not; weights are not needed. A row is for all runs with the same recipe and test images; each seed counts once. It names
the recipe's changes to its preset. Means are over finished runs; ± is the sample standard deviation, omitted for n = 1.
Runs that are not finished or have diverged are listed with their last evaluation. That is not a result, because their
learning rate has not come down.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whycam.errors import WhycamError
from whycam.training import RECIPES, EpochRecord, Recipe, Spread, find_recipe, read_history
from whycam.training.evaluation import VIEWS
from whycam.training.history import HISTORY_FILE
from whycam.training.state import STATE_FILE, load_state

CONFIG = "config.json"
# The program writes the error message into this file of a run that diverged.
DIVERGED = "diverged.txt"
# These fields do not change the trained network.
WITHOUT_EFFECT = ("evaluate_every", "graph")
ZOO = "https://github.com/KellerJordan/cifar10-zoo"
# (who, source, epochs, n, plain, flip, time and hardware) for this network of 11,173,962 parameters, as published.
PUBLISHED = (
    ("the study that whycam repeats", "", "20", "", "92.14", "", "49", "a small GPU"),
    ("resnet18_94", ZOO, "26", "200", "93.44", "94.04", "2.0", "A100"),
    (
        "Lightning's tutorial",
        "https://lightning.ai/docs/pytorch/stable/notebooks/lightning_examples/cifar10-baseline.html",
        *("40–50", "", "93–94", "", "", ""),
    ),
    ("resnet18_96", ZOO, "80", "3; flip 100", "95.45", "95.88 ± 0.12", "2.0", "A100"),
    ("pytorch-cifar, as its users run it", "https://github.com/kuangliu/pytorch-cifar", "200", "", "95.67", "", "", ""),
    ("Cutout", "https://arxiv.org/abs/1708.04552", "200", "5", "96.01", "", "", ""),
)
# The study's test accuracy after these epochs, from its log, in percent.
STUDY = {1: "about 44", 5: "about 74", 15: "about 88", 20: "92.14"}


@dataclass(frozen=True)
class Run:
    """The folder of one run.

    Attributes:
        recipe: None if the folder holds only a history.
        test_set: the images that it is evaluated on.
        history: the finished epochs.
        accuracy: by view, in [0, 1]; empty unless the run is finished.
        hardware: as far as it is recorded.
    """

    folder: Path
    recipe: Recipe | None
    seed: int | None
    test_set: str
    history: tuple[EpochRecord, ...]
    accuracy: Mapping[str, float]
    hardware: str

    @property
    def label(self) -> str:
        """The recipe's name and its changes to the preset of that name."""
        if self.recipe is None:
            return str(self.folder)
        return ", ".join([self.recipe.name, *(f"{name}={value}" for name, value in changes(self.recipe).items())])

    @property
    def seconds_per_epoch(self) -> float:
        """Seconds per epoch, evaluations included."""
        return self.history[-1].seconds / len(self.history)


def changes(recipe: Recipe, base: Recipe | None = None) -> dict[str, str]:
    """The fields in which ``recipe`` differs from ``base`` (by default the preset of its name) as JSON."""
    mine, theirs = recipe.to_dict(), (base or RECIPES.get(recipe.name, Recipe())).to_dict()
    # A run's record holds the choice for "auto", and the table shows the hardware anyway.
    hidden = {"name", *WITHOUT_EFFECT} | ({"precision"} if theirs["precision"] == "auto" else set())
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in mine.items()
        if name not in hidden and not equal(value, theirs[name])
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other)
    return bool(one == other)


def find_runs(roots: Iterable[Path], *, required: bool = True) -> list[Run]:
    """Every run in ``roots`` and their subfolders, sorted by path; of several copies of a run, the most complete one.

    Raises:
        WhycamError: a file is damaged, or runs are ``required`` and a folder is missing or holds none.
    """
    runs = []
    for root in roots:
        folders = {path.parent for name in (CONFIG, HISTORY_FILE) for path in root.rglob(name)}
        found = [run for folder in sorted(folders) if (run := read_run(folder)) is not None]
        if required and not found:
            raise WhycamError(f"{root}: there is no training run at or below this folder")
        runs += found
    # Copies have the same history: two different runs never take exactly the same time.
    distinct: dict[tuple[EpochRecord, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (bool(run.accuracy), run.recipe is not None), reverse=True):
        distinct.setdefault(run.history, run)
    return [run for run in runs if any(run is one for one in distinct.values())]


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``; None if the folder holds no run, or the run has not finished an epoch.

    Raises:
        WhycamError: a file of it is damaged.
    """
    if (folder / CONFIG).exists():
        try:
            record = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("training") or {}
            if "evaluations" not in record:
                return None
            scores = {view: result["accuracy"] for view, result in record["evaluations"].items()}
            images = record["evaluations"]["plain"]["images"]
            history = tuple(EpochRecord.from_dict(entry) for entry in record["history"])
            recipe = Recipe.from_dict(record["recipe"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WhycamError(f"{folder / CONFIG}: this is not the record of a training run ({error})") from error
        test_set = record.get("test_data", f"{images:,} images")
        hardware = record.get("hardware", record.get("device", ""))
        count = record.get("processes", 1)
        hardware = f"{recipe.precision}, {hardware}" + (f" and {count - 1} more" if count > 1 else "")
        return Run(folder, recipe, record.get("seed"), test_set, history, scores, hardware)
    history = tuple(read_history(folder))
    if not history:
        return None
    tested = [entry.test_images for entry in history if entry.test_images]
    test_set = f"{tested[-1]:,} images" if tested else ""
    if not (folder / STATE_FILE).exists():
        return Run(folder, None, None, test_set, history, {}, "")
    key = load_state(folder / STATE_FILE).key
    recipe = Recipe.from_dict(key["recipe"])
    return Run(folder, recipe, key["seed"], test_set, history, {}, recipe.precision)


def groups(runs: Iterable[Run]) -> list[list[Run]]:
    """Finished runs, grouped by recipe and test images, each seed once; sorted by preset and number of changes."""
    found: dict[str, dict[int | None, Run]] = {}
    for run in runs:
        if run.accuracy and run.recipe is not None:
            recipe = {name: value for name, value in run.recipe.to_dict().items() if name not in WITHOUT_EFFECT}
            found.setdefault(json.dumps([recipe, run.test_set]), {}).setdefault(run.seed, run)
    presets = list(RECIPES)

    def order(group: list[Run]) -> tuple[int, str, int, str]:
        name = group[0].label.split(",")[0]
        preset = presets.index(name) if name in presets else len(presets)
        return preset, group[0].test_set, group[0].label.count(","), group[0].label

    return sorted((list(group.values()) for group in found.values()), key=order)


def table(runs: Sequence[Run]) -> str:
    """The table of all runs and of the published results."""
    lines = row("recipe", "tested on", "epochs", "n", "plain", "flip", "six views", "seconds per epoch", "hardware")
    lines += "|" + "---|" * 9 + "\n"
    for group in groups(runs):
        first = group[0]
        views = [percent([run.accuracy[view] for run in group if view in run.accuracy]) for view in VIEWS]
        hardware = "; ".join(sorted({run.hardware for run in group}))
        seconds = f"{statistics.median(run.seconds_per_epoch for run in group):.1f}"
        lines += row(first.label, first.test_set, len(first.history), len(group), *views, seconds, hardware)
    for run in (run for run in runs if not run.accuracy):
        tested = [entry for entry in run.history if entry.test_accuracy is not None]
        last = f"{100 * (tested[-1].test_accuracy or 0):.2f} after {tested[-1].epoch}" if tested else ""
        done = f"{len(run.history)} of {run.recipe.epochs}" if run.recipe else len(run.history)
        ended = "diverged" if (run.folder / DIVERGED).exists() else "not finished"
        lines += row(
            f"{run.label}: {ended}", run.test_set, done, 1, last, "", "", f"{run.seconds_per_epoch:.1f}", run.hardware
        )
    for name, source, epochs, n, plain, flip, published, hardware in PUBLISHED:
        who = f"[{name}]({source})" if source else name
        lines += row(f"{who}, as published", "CIFAR-10 (test)", epochs, n, plain, flip, "", published, hardware)
    return lines


def trajectory(runs: Sequence[Run], epochs: Sequence[int]) -> str:
    """Test accuracy after chosen epochs, one row per run and one for the study."""
    lines = (
        row("run", "seed", "epochs done", *(f"after {epoch}" for epoch in epochs)) + "|" + "---|" * (3 + len(epochs))
    )
    lines += "\n"
    for run in runs:
        at = {entry.epoch: entry.test_accuracy for entry in run.history}
        values = ["" if (value := at.get(epoch)) is None else f"{100 * value:.2f}" for epoch in epochs]
        lines += row(run.label, "" if run.seed is None else run.seed, len(run.history), *values)
    return lines + row("the study, as published", "", 20, *(STUDY.get(epoch, "") for epoch in epochs))


def ablations(runs: Sequence[Run], base: Recipe) -> str:
    """The effect of one changed field on ``base``: mean ± sd of the difference in plain accuracy, over shared seeds."""
    lines = row("changed", "tested on", "n", "plain", "difference") + "|" + "---|" * 5 + "\n"
    everything = groups(runs)
    for reference in everything:
        assert reference[0].recipe is not None
        if changes(reference[0].recipe, base):
            continue
        theirs = {run.seed: run.accuracy["plain"] for run in reference}
        lines += row("nothing", reference[0].test_set, len(theirs), percent(list(theirs.values())), "")
        for group in everything:
            assert group[0].recipe is not None
            changed = changes(group[0].recipe, base)
            mine = {run.seed: run.accuracy["plain"] for run in group if run.seed in theirs}
            if len(changed) == 1 and group[0].test_set == reference[0].test_set and mine:
                label = ", ".join(f"{name}={value}" for name, value in changed.items())
                difference = percent([value - theirs[seed] for seed, value in mine.items()], sign="+")
                lines += row(label, group[0].test_set, len(mine), percent(list(mine.values())), difference)
    return lines


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample standard deviation in percent; empty for no values."""
    if not values:
        return ""
    spread = Spread.of(values)
    return f"{100 * spread.mean:{sign}.2f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.2f}")


def row(*cells: Any) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the chosen tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--trajectory", nargs="*", type=int, metavar="EPOCH", help="test accuracy after these epochs")
    parser.add_argument("--ablations", nargs="+", metavar="RECIPE", help="a recipe's name and changes to it: the base")
    options = parser.parse_args(argv)
    try:
        runs = find_runs(options.folders)
        if options.ablations:
            sys.stdout.write(ablations(runs, find_recipe(options.ablations[0], options.ablations[1:])))
        elif options.trajectory is not None:
            sys.stdout.write(trajectory(runs, options.trajectory or list(STUDY)))
        else:
            sys.stdout.write(table(runs))
    except WhycamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
