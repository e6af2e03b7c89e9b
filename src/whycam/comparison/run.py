"""Run a comparison: `whycam.compare`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

from torch import Tensor, nn

from whycam.cam.inspect import default_layer
from whycam.cam.methods.registry import Method, MethodLike, resolve_methods
from whycam.cam.network.layers import LayerLike, resolve_layers
from whycam.comparison.context import CONTROLS, ComparisonContext, Key
from whycam.comparison.ranking import Comparison
from whycam.comparison.registry import METRICS, Metric, find_metrics
from whycam.errors import WhycamError, check_batch_size
from whycam.metrics.checks import check_images
from whycam.metrics.scoring import Preprocessing
from whycam.nn_utils import in_eval_mode, unwrapped
from whycam.progress import Progress, quiet

DEFAULT_METRICS = ("road", "deletion", "insertion", "adcc", "pointing", "sanity")


def compare(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[MethodLike] | MethodLike,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    *,
    preprocess: Preprocessing | None,
    metrics: Sequence[str] | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = quiet,
    measures: Sequence[str] | str | None = None,
) -> Comparison:
    """Compare explanation methods on a network by several metrics, and test each against three controls.

    The controls are maps that ignore the decision: random channel weights, the image's edges, and a Gaussian at the
    image center. All maps explain the class that the network predicts for the unaltered image. All maps are scored on
    the same images with the same random numbers, so that differences are tested image by image. No metric is the truth:
    each alters images in its own way, and metrics disagree. Do not trust a map that no metric distinguishes from the
    controls.

    Args:
        model: a network with (B, K) logits; not changed.
        images: (B, C, H, W) floats in [0, 1], at the network's size, before normalization. Use at least 6 images, the
            fewest for which a difference can be significant; 50 or more are better.
        methods: names or `whycam.cam.Method` objects. The controls ``random``, ``sobel`` and ``center`` are always
            added.
        layers: names or modules; by default the last layer with spatial positions.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        metrics: a name or several, see `whycam.comparison.METRICS`; by default those of road, deletion, insertion,
            adcc, pointing and sanity that work for this network and these images.
        seed: seeds all random numbers.
        batch_size: images in one forward pass.
        progress: called with (metric, done, total).
        measures: the old name of ``metrics``; it goes with version 0.3.

    Returns:
        A `Comparison`. Its ``rankings(metric)`` lists all maps, the best first, and tells the controls than which each
        is significantly better or worse.

    Raises:
        WhycamError: there are fewer than two images, an image lies outside [0, 1], or a method, layer or metric is
            unknown or does not work for this network.
    """
    if measures is not None:
        warnings.warn(
            "compare(measures=...) is now metrics=...; the old name will be removed in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        metrics = measures
    check_images(images)
    if len(images) < 2:
        raise WhycamError(f"compare on at least 2 images, better on 50; got {len(images)}")
    wanted = _wanted_metrics(metrics)
    check_batch_size(batch_size)
    network = unwrapped(model)
    normalize = preprocess or _unchanged
    resolved = _with_controls(resolve_methods(methods))
    with in_eval_mode(network):
        found = [default_layer(network, normalize(images[:1]))] if layers is None else resolve_layers(network, layers)
        names = tuple(layer.name for layer in found)
        context = ComparisonContext(network, images, normalize, names, resolved, seed, batch_size)
        progress("maps", 0, 1)
        broken = context.broken
        left_out = _prepare(context, wanted, progress, strict=metrics is not None)
        wanted = tuple(metric for metric in wanted if metric.name not in left_out)
        scores = _scores(context, wanted, progress)
    return Comparison(scores, broken, len(images), left_out, context.blank)


def _wanted_metrics(metrics: Sequence[str] | str | None) -> tuple[Metric, ...]:
    names = DEFAULT_METRICS if metrics is None else metrics
    wanted = find_metrics([names] if isinstance(names, str) else names)
    if not wanted:
        raise WhycamError(f"no metric is given; there are {', '.join(METRICS)}")
    return wanted


def _prepare(
    context: ComparisonContext, wanted: Sequence[Metric], progress: Progress, *, strict: bool
) -> dict[str, str]:
    """Metrics that cannot be computed → the reason; with ``strict`` the first of them raises its error."""
    left_out = {}
    for metric in wanted:
        progress(metric.name, 0, len(wanted) * len(context.broken))
        try:
            metric.prepare(context)
        except WhycamError as error:
            if strict:
                raise
            left_out[metric.name] = str(error)
    return left_out


def _scores(context: ComparisonContext, wanted: Sequence[Metric], progress: Progress) -> dict[str, dict[Key, Tensor]]:
    total = len(wanted) * len(context.broken)
    scores: dict[str, dict[Key, Tensor]] = {metric.name: {} for metric in wanted}
    for done, (metric, key) in enumerate(product(wanted, context.broken)):
        progress(metric.name, done, total)
        scores[metric.name][key] = metric(context, key)
    progress(wanted[-1].name, total, total)
    return scores


def _unchanged(images: Tensor) -> Tensor:
    return images


def _with_controls(methods: Sequence[Method]) -> tuple[Method, ...]:
    given = [method for method in methods if method.name not in CONTROLS]
    return (*given, *resolve_methods(CONTROLS))
