"""By what explanation methods are compared: each measure gives every map of a context one number an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from whycam.cam.maps import only_finite
from whycam.comparison.context import CONTROLS, ComparisonContext, Key, flat
from whycam.device import in_double
from whycam.errors import WhycamError, near_misses
from whycam.metrics.faithfulness.insertion_deletion import deletion, insertion
from whycam.metrics.faithfulness.road import road
from whycam.metrics.localization.grid_pointing import GridPointing, grid_pointing
from whycam.metrics.localization.mosaic import confident, mosaics
from whycam.metrics.map_similarity import spearman
from whycam.metrics.randomization.reinitialize import reinitialized
from whycam.metrics.robustness.coherency import adcc
from whycam.metrics.robustness.sensitivity import infidelity, max_sensitivity

CURVE_STEPS = 16
MOSAICS = 32
GRIDS = (3, 2)
"""Cells along a mosaic's sides: the finest for which there are images of enough classes."""
SANITY_IMAGES = 32

Function = Callable[[ComparisonContext, Key], Tensor]


@dataclass(frozen=True)
class Measure:
    """One way to judge maps.

    Attributes:
        name: in lower case, as it is asked for.
        title: as a table's head.
        better: whether a higher or a lower number is better.
        paper: where it was published.
        summary: one line, the docstring's first.
        function: (`ComparisonContext`, (method, layer)) → (n,) one number an image, of the first n, the same for all
            keys.
        prepare: called before anything is measured, so that what cannot work is refused then.
        controls: those that a map should beat.
        ranks: whether a better number makes a better map, or the measure only tells who fails.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    paper: str
    summary: str
    function: Function = field(repr=False)
    prepare: Callable[[ComparisonContext], object] = field(repr=False, default=lambda _contest: None)
    controls: tuple[str, ...] = CONTROLS
    ranks: bool = True

    def facts(self) -> dict[str, Any]:
        """The JSON form: all but the functions."""
        return {name: getattr(self, name) for name in ("name", "title", "better", "paper", "summary", "controls")}

    def __call__(self, context: ComparisonContext, key: Key) -> Tensor:
        """Judge a method at a layer: (n,) float64 on the CPU; NaN where the measure is not defined for a unit."""
        return in_double(self.function(context, key)).cpu()


MEASURES: dict[str, Measure] = {}


def measure(
    title: str,
    *,
    better: Literal["higher", "lower"],
    paper: str,
    prepare: Callable[[ComparisonContext], object] = lambda _contest: None,
    controls: tuple[str, ...] = CONTROLS,
    ranks: bool = True,
) -> Callable[[Function], Measure]:
    """Register a function as a measure; its name is the title's in lower case without separators.

    Raises:
        WhycamError: the name is taken, or the function has no docstring.
    """

    def register(function: Function) -> Measure:
        name = _plain(title)
        if name in MEASURES:
            raise WhycamError(f"there is a measure {name!r} already")
        lines = (function.__doc__ or "").strip().splitlines()
        if not lines:
            raise WhycamError(f"measure {title!r} needs a docstring: its first line is what users are shown")
        MEASURES[name] = Measure(name, title, better, paper, lines[0], function, prepare, controls, ranks)
        return MEASURES[name]

    return register


def find_measures(names: Iterable[str]) -> tuple[Measure, ...]:
    """Measures by name, ignoring case, hyphens, underscores and blanks.

    Raises:
        WhycamError: there is no such measure; with the near misses.
    """
    found: dict[str, Measure] = {}
    for name in names:
        known = MEASURES.get(_plain(name))
        if known is None:
            raise WhycamError(
                f"there is no measure {name!r}{near_misses(_plain(name), MEASURES)}; whycam measures lists them"
            )
        found[known.name] = known
    return tuple(found.values())


def _plain(title: str) -> str:
    return title.lower().replace(" ", "").replace("-", "").replace("_", "")


@measure("ROAD", better="higher", paper="Rong et al., 2022, arXiv:2202.00449")
def road_score(context: ComparisonContext, key: Key) -> Tensor:
    """Half of what the class is likelier without the lowest-ranked pixels than without the highest; noise has 0."""
    return road(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                seed=context.seeds, batch_size=context.batch_size).combined  # fmt: skip


@measure("Deletion", better="lower", paper="Petsiuk et al., 2018, arXiv:1806.07421")
def deletion_area(context: ComparisonContext, key: Key) -> Tensor:
    """The mean probability of the class while pixels are blackened, the highest-ranked first."""
    return deletion(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                    steps=CURVE_STEPS, seed=context.seeds, batch_size=context.batch_size).area  # fmt: skip


@measure("Insertion", better="higher", paper="Petsiuk et al., 2018, arXiv:1806.07421")
def insertion_area(context: ComparisonContext, key: Key) -> Tensor:
    """The mean probability of the class while a blurred image gets its pixels back, the highest-ranked first."""
    return insertion(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                     steps=CURVE_STEPS, seed=context.seeds, batch_size=context.batch_size).area  # fmt: skip


@measure("Drop", better="lower", paper="Average Drop, Chattopadhay et al., 2018, arXiv:1710.11063")
def average_drop(context: ComparisonContext, key: Key) -> Tensor:
    """By what share of it the probability falls when the image is multiplied by its heatmap."""
    return context.change(key).drop


@measure("Increase", better="higher", paper="Increase in Confidence, Chattopadhay et al., 2018, arXiv:1710.11063")
def increase(context: ComparisonContext, key: Key) -> Tensor:
    """Whether the probability rises when the image is multiplied by its heatmap."""
    return context.change(key).increase


@measure("Gain", better="higher", paper="Average Gain, Zhang et al., 2024, arXiv:2301.07002")
def average_gain(context: ComparisonContext, key: Key) -> Tensor:
    """By what share of what is left the probability rises when the image is multiplied by its heatmap."""
    return context.change(key).gain


# The middle is the same in every image, so it has the perfect score without any merit: no map can be better.
_SEEING = tuple(control for control in CONTROLS if control != "center")


@measure("Coherency", better="higher", paper="Poppi et al., 2021, arXiv:2104.10252", controls=_SEEING)
def coherency_score(context: ComparisonContext, key: Key) -> Tensor:
    """How alike the heatmap of the image times its heatmap is: (correlation + 1) / 2."""
    return context.coherency(key)


@measure("Complexity", better="lower", paper="Poppi et al., 2021, arXiv:2104.10252")
def complexity_score(context: ComparisonContext, key: Key) -> Tensor:
    """The heatmap's mean: how much of the image is lit."""
    return context.complexity(key)


@measure("ADCC", better="higher", paper="Poppi et al., 2021, arXiv:2104.10252")
def adcc_score(context: ComparisonContext, key: Key) -> Tensor:
    """The harmonic mean of coherency, 1 − complexity and 1 − drop."""
    return adcc(context.change(key).drop, context.complexity(key), context.coherency(key))


@measure("Sensitivity", better="lower", paper="Yeh et al., 2019, arXiv:1901.09392", controls=_SEEING)
def sensitivity(context: ComparisonContext, key: Key) -> Tensor:
    """The largest relative change of the map under noise that nobody sees."""
    return max_sensitivity(context.again(key), context.images, seed=context.seeds)


@measure("Infidelity", better="lower", paper="Yeh et al., 2019, arXiv:1901.09392")
def infidelity_score(context: ComparisonContext, key: Key) -> Tensor:
    """The share of what noise does to the probability that the map, optimally scaled, does not tell."""
    return infidelity(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                      seed=context.seeds, batch_size=context.batch_size).unexplained  # fmt: skip


def _played(context: ComparisonContext) -> tuple[GridPointing, Tensor]:
    """The game, and which image stood in which cell: (M, grid²)."""

    def play() -> tuple[GridPointing, Tensor]:
        sure = confident(context.logits, context.classes)
        images, classes = context.images[sure], context.classes[sure]
        kinds = len(torch.unique(classes))
        grid = next((grid for grid in GRIDS if grid**2 <= kinds), None)
        if grid is None:
            raise WhycamError(
                f"pointing needs images of at least {min(GRIDS) ** 2} classes that the network is sure of, and there "
                f"are {kinds} among these {len(context.images)}: compare on more images, or by other measures"
            )
        game = mosaics(images, classes, grid=grid, count=MOSAICS, seed=context.seed)
        at_once = max(1, context.batch_size // grid**2)  # a mosaic is as large as grid² images
        played = grid_pointing(context.model, game, context.layers, context.methods, preprocess=context.preprocess,
                               batch_size=at_once, strict=False)  # fmt: skip
        return played, sure.cpu()[game.members]

    return context.once("pointing", play)


@measure("Pointing", better="higher", paper="Grid Pointing Game, Böhle et al., 2021, arXiv:2104.00032", prepare=_played)
def pointing(context: ComparisonContext, key: Key) -> Tensor:
    """The share of a class's evidence that lies in its own cell of a mosaic; chance is 1/9 (1/4 with few classes).

    A mosaic is of nine images, or of four where there are fewer than nine classes. The class is the one that the
    network predicts for the image by itself, with a probability of at least one half. An image's number is its mean
    over all mosaics that show it, for mosaics share images and are no units of their own.
    """
    played, members = _played(context)
    images, scores = len(context.images), played.scores[key].flatten()
    total = scores.new_zeros(images).index_add(0, members.flatten(), scores)
    return total / members.flatten().bincount(minlength=images)  # NaN where no mosaic shows it


def _of_destroyed(context: ComparisonContext) -> dict[Key, Tensor]:
    """Maps of the first images by a network whose parameters are random throughout."""

    def explain() -> dict[Key, Tensor]:
        network = reinitialized(context.model, seed=context.seed)
        return context.explained(network, context.images[:SANITY_IMAGES], context.classes[:SANITY_IMAGES])

    return context.once("sanity", explain)


# Random weights on the channels of a random network are as different as can be, so no map has to beat these.
@measure(
    "Sanity", better="lower", paper="Adebayo et al., 2018, arXiv:1810.03292", controls=("sobel", "center"),
    prepare=_of_destroyed, ranks=False,
)  # fmt: skip
def sanity(context: ComparisonContext, key: Key) -> Tensor:
    """|Rank correlation| with the map by a network whose parameters are random: near 1 shows that it ignores them.

    One random network, at most 32 images. Maps that have nothing to do with each other have some 0.2 by chance where
    there are sixteen cells, and less where there are more: compare at one layer, and with the random weights there.
    """
    after = _of_destroyed(context)[key]
    before = context.maps[key][: len(after)]
    # A map that has lost all order is like no other; one that never had any tells nothing of the network.
    alike = spearman(before, only_finite(after)).abs().nan_to_num(nan=0.0)
    return alike.masked_fill(flat(before).to(alike.device), torch.nan)
