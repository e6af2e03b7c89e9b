"""The metrics that whycam comes with. Each gives every map of a context one number per image."""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.maps import only_finite
from whycam.comparison.context import CONTROLS, ComparisonContext, Key, constant
from whycam.comparison.registry import metric
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.infidelity import infidelity
from whycam.metrics.faithfulness.insertion_deletion import deletion, insertion
from whycam.metrics.faithfulness.road import road
from whycam.metrics.localization.grid_pointing import GridPointing, grid_pointing
from whycam.metrics.localization.mosaic import confident, mosaics
from whycam.metrics.map_similarity import spearman
from whycam.metrics.randomization.reinitialize import reinitialized
from whycam.metrics.robustness.coherency import adcc
from whycam.metrics.robustness.sensitivity import max_sensitivity

CURVE_STEPS = 16
MOSAICS = 32
GRIDS = (3, 2)
"""Cells along a mosaic's sides; the first for which the images show enough classes is used."""
SANITY_IMAGES = 32


@metric("ROAD", better="higher", paper="Rong et al., 2022, arXiv:2202.00449")
def road_score(context: ComparisonContext, key: Key) -> Tensor:
    """Half the difference in the class's probability: lowest-ranked pixels removed minus highest-ranked pixels removed.

    A noise map scores 0.
    """
    return road(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                seed=context.seeds, batch_size=context.batch_size).combined  # fmt: skip


@metric("Deletion", better="lower", paper="Petsiuk et al., 2018, arXiv:1806.07421")
def deletion_area(context: ComparisonContext, key: Key) -> Tensor:
    """The class's mean probability while pixels turn black, the highest-ranked first."""
    return deletion(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                    steps=CURVE_STEPS, seed=context.seeds, batch_size=context.batch_size).area  # fmt: skip


@metric("Insertion", better="higher", paper="Petsiuk et al., 2018, arXiv:1806.07421")
def insertion_area(context: ComparisonContext, key: Key) -> Tensor:
    """The class's mean probability while pixels of a blurred image are restored, the highest-ranked first."""
    return insertion(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                     steps=CURVE_STEPS, seed=context.seeds, batch_size=context.batch_size).area  # fmt: skip


@metric("Drop", better="lower", paper="Average Drop, Chattopadhay et al., 2018, arXiv:1710.11063")
def average_drop(context: ComparisonContext, key: Key) -> Tensor:
    """The share of its probability that the class loses when the image is multiplied by its heatmap."""
    return context.confidence_change(key).drop


@metric("Increase", better="higher", paper="Increase in Confidence, Chattopadhay et al., 2018, arXiv:1710.11063")
def increase(context: ComparisonContext, key: Key) -> Tensor:
    """1 if the class's probability rises when the image is multiplied by its heatmap, else 0."""
    return context.confidence_change(key).increase


@metric("Gain", better="higher", paper="Average Gain, Zhang et al., 2024, arXiv:2301.07002")
def average_gain(context: ComparisonContext, key: Key) -> Tensor:
    """The share of the missing probability that the class gains when the image is multiplied by its heatmap."""
    return context.confidence_change(key).gain


# The center map is the same for every image, so it scores perfectly here without merit; no map can be better.
_IMAGE_DEPENDENT = tuple(control for control in CONTROLS if control != "center")


@metric("Coherency", better="higher", paper="Poppi et al., 2021, arXiv:2104.10252", controls=_IMAGE_DEPENDENT)
def coherency_score(context: ComparisonContext, key: Key) -> Tensor:
    """How similar the heatmap is to that of the image times its heatmap: (correlation + 1) / 2."""
    return context.coherency(key)


@metric("Complexity", better="lower", paper="Poppi et al., 2021, arXiv:2104.10252")
def complexity_score(context: ComparisonContext, key: Key) -> Tensor:
    """The heatmap's mean: how much of the image it highlights."""
    return context.complexity(key)


@metric("ADCC", better="higher", paper="Poppi et al., 2021, arXiv:2104.10252")
def adcc_score(context: ComparisonContext, key: Key) -> Tensor:
    """The harmonic mean of coherency, 1 − complexity and 1 − drop."""
    return adcc(context.confidence_change(key).drop, context.complexity(key), context.coherency(key))


@metric("Sensitivity", better="lower", paper="Yeh et al., 2019, arXiv:1901.09392", controls=_IMAGE_DEPENDENT)
def sensitivity(context: ComparisonContext, key: Key) -> Tensor:
    """The map's largest relative change under noise too small to see."""
    return max_sensitivity(context.explain_altered(key), context.images, seed=context.seeds)


@metric("Infidelity", better="lower", paper="Yeh et al., 2019, arXiv:1901.09392")
def infidelity_score(context: ComparisonContext, key: Key) -> Tensor:
    """The share of the probability's change under noise that the map, scaled to fit best, does not predict."""
    return infidelity(context.model, context.images, context.maps[key], context.classes, preprocess=context.preprocess,
                      seed=context.seeds, batch_size=context.batch_size).unexplained  # fmt: skip


def _pointing_game(context: ComparisonContext) -> tuple[GridPointing, Tensor]:
    """The result of the game, and (M, grid²) the index of the image in each cell."""

    def play() -> tuple[GridPointing, Tensor]:
        sure = confident(context.logits, context.classes)
        images, classes = context.images[sure], context.classes[sure]
        kinds = len(torch.unique(classes))
        grid = next((grid for grid in GRIDS if grid**2 <= kinds), None)
        if grid is None:
            raise WhycamError(
                f"pointing needs images of at least {min(GRIDS) ** 2} classes that the network predicts with "
                f"confidence, and these {len(context.images)} images have {kinds}: use more images or other metrics"
            )
        game = mosaics(images, classes, grid=grid, count=MOSAICS, seed=context.seed)
        batch_size = max(1, context.batch_size // grid**2)  # a mosaic is as large as grid² images
        result = grid_pointing(context.model, game, context.layers, context.methods, preprocess=context.preprocess,
                               batch_size=batch_size, strict=False)  # fmt: skip
        return result, sure.cpu()[game.members]

    return context.cached("pointing", play)


@metric(
    "Pointing", better="higher", paper="Grid Pointing Game, Böhle et al., 2021, arXiv:2104.00032",
    prepare=_pointing_game,
)  # fmt: skip
def pointing(context: ComparisonContext, key: Key) -> Tensor:
    """The share of a class's evidence that lies in its own cell of a mosaic; chance is 1/9 (1/4 for few classes).

    A mosaic shows nine images, or four if the images have fewer than nine classes. The class is the one that the
    network predicts for the single image with a probability of at least one half. An image's score is its mean over all
    mosaics that show it: mosaics share images, so they are not independent units.
    """
    result, members = _pointing_game(context)
    images, scores = len(context.images), result.scores[key].flatten()
    total = scores.new_zeros(images).index_add(0, members.flatten(), scores)
    return total / members.flatten().bincount(minlength=images)  # NaN for an image that is in no mosaic


def _maps_of_reinitialized(context: ComparisonContext) -> dict[Key, Tensor]:
    """Maps of the first images by a network whose parameters are all reinitialized."""

    def explain() -> dict[Key, Tensor]:
        network = reinitialized(context.model, seed=context.seed)
        return context.explain(network, context.images[:SANITY_IMAGES], context.classes[:SANITY_IMAGES])

    return context.cached("sanity", explain)


# "random" is not among the controls: random weights on the channels of a reinitialized network already give maps that
# differ as much as possible, so no map has to differ more.
@metric(
    "Sanity", better="lower", paper="Adebayo et al., 2018, arXiv:1810.03292", controls=("sobel", "center"),
    prepare=_maps_of_reinitialized, ranks=False,
)  # fmt: skip
def sanity(context: ComparisonContext, key: Key) -> Tensor:
    """|Rank correlation| with the map of a network with random parameters: near 1 if the map ignores the parameters.

    One random network, at most 32 images. By chance, unrelated maps score about 0.2 if they have sixteen cells, and
    less if they have more: compare scores at one layer, and with the random weights at that layer.
    """
    after = _maps_of_reinitialized(context)[key]
    before = context.maps[key][: len(after)]
    # A map that becomes constant resembles no other, so it scores 0. A map that was constant before tells nothing about
    # the network, so its score is undefined.
    correlation = spearman(before, only_finite(after)).abs().nan_to_num(nan=0.0)
    return correlation.masked_fill(constant(before).to(correlation.device), torch.nan)
