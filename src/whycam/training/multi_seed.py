"""Train one recipe with several seeds: mean, standard deviation and number of seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whycam.data.source import ImageSource
from whycam.errors import WhycamError
from whycam.files import write_bytes, writing
from whycam.training.evaluation import VIEWS, View
from whycam.training.recipe import Recipe
from whycam.training.state import STATE_FILE
from whycam.training.train import TrainingResult, train

SUMMARY_FILE = "seeds.json"


@dataclass(frozen=True)
class Spread:
    """Accuracy over n seeds.

    Attributes:
        n: number of seeds.
        mean: in [0, 1].
        sd: sample standard deviation (n − 1); None for one seed.
        values: of each seed, in order.
    """

    n: int
    mean: float
    sd: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(len(values), statistics.fmean(values), sd, tuple(values))

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f}"
        return f"{100 * self.mean:.2f}{spread}% (n={self.n})"


@dataclass(frozen=True)
class SeedsResult:
    """The runs of several seeds.

    Attributes:
        runs: one result per seed; only those before an interruption.
        accuracy: by view, over all runs; empty unless all are finished.
    """

    runs: tuple[TrainingResult, ...]
    accuracy: dict[View, Spread]

    @property
    def finished(self) -> bool:
        """Whether every run is finished."""
        return bool(self.accuracy)


def train_seeds(
    recipe: Recipe,
    train_source: ImageSource,
    test_source: ImageSource,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    resume: bool = False,
    on_seed: Callable[[int, Path], None] | None = None,
    **options: Any,
) -> SeedsResult:
    """Train once per seed, into ``out/seed-N``, and write mean, standard deviation and n to ``out/seeds.json``.

    Args:
        recipe: the same for all.
        train_source: the images to learn from.
        test_source: the images to report on.
        out: a folder for all runs.
        seeds: each at most once.
        resume: read the results of finished seeds, resume an interrupted seed, start the others.
        on_seed: called with each seed and its folder before that seed is trained.
        options: further keywords of ``train``.

    Raises:
        WhycamError: as for ``train``, a seed is named twice, or ``out`` holds other files than these runs.
    """
    out = Path(out)
    if not seeds or len(set(seeds)) != len(seeds):
        raise WhycamError(f"seeds are {list(seeds)}; name at least one, and each once")
    _check_folder(out)
    runs: list[TrainingResult] = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        if on_seed is not None:
            on_seed(seed, folder)
        begun = resume and (folder / STATE_FILE).exists()
        runs.append(train(recipe, train_source, test_source, folder, seed=seed, resume=begun, **options))
        if not runs[-1].finished:
            return SeedsResult(tuple(runs), {})
    accuracy = {view: Spread.of([run.evaluations[view].accuracy for run in runs]) for view in VIEWS}
    summary = {
        "recipe": runs[0].recipe.to_dict(),
        "seeds": list(seeds),
        "accuracy": {view: vars(spread) for view, spread in accuracy.items()},
    }
    write_bytes(out / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    return SeedsResult(tuple(runs), accuracy)


def _check_folder(out: Path) -> None:
    with writing(out):
        entries = sorted(out.iterdir()) if out.is_dir() else []
    for entry in entries:
        own = entry.name == SUMMARY_FILE or entry.name.startswith("seed-") or entry.name.endswith(".partial")
        if not own:
            raise WhycamError(f"{out}: holds something else already ({entry.name}); choose a new folder")
