"""Which explanation method to trust on this network: methods and layers beside controls, by several measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor, nn

from whycam.cam.inspect import default_layer
from whycam.cam.methods.registry import Method, MethodLike, resolve_methods
from whycam.cam.network.layers import LayerLike, resolve_layers
from whycam.comparison.context import CONTROLS, ComparisonContext, Key
from whycam.comparison.measures import MEASURES, Measure, find_measures
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import Preprocessing, check_images
from whycam.metrics.statistics import bootstrap_interval, sign_flip_test
from whycam.nn_utils import in_eval_mode, unwrapped
from whycam.progress import Progress, quiet

LEVEL = 0.05
"""Of the tests by which maps are told apart."""
FEWEST = 6
"""Images with which they can be: of fewer, all differences may have one sign by chance more often than that."""
DEFAULT = ("road", "deletion", "insertion", "adcc", "pointing", "sanity")


@dataclass(frozen=True)
class Ranking:
    """How one method at one layer does by one measure.

    Attributes:
        method: its name.
        layer: its name; several joined by "+"; "input" for methods that look at the image alone.
        control: whether it is one that knows nothing of the decision.
        mean: over the units (images) for which the measure is defined; NaN where it is for none.
        interval: its 95% bootstrap interval; None with fewer than two units.
        n: how many those are.
        best: whether no other map but a control is better: it is the best, or not told apart from the best, unit by
            unit, by a `sign_flip_test` at 5%. False where it is defined for no unit, and of a measure that only tells
            who fails.
        beats: the controls than which it is better, by the same test.
        loses: the controls than which it is worse.
        convincing: whether it beats all that count for this measure; None for controls themselves.
    """

    method: str
    layer: str
    control: bool
    mean: float
    interval: tuple[float, float] | None
    n: int
    best: bool
    beats: tuple[str, ...]
    loses: tuple[str, ...]
    convincing: bool | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of all maps by all measures.

    Attributes:
        scores: measure → (method, layer) → (n,) float64, NaN where it is not defined; of one measure the units are the
            same for all keys.
        broken: (method, layer) → how many of its maps were not finite, and counted as no evidence.
        images: how many there were.
        left_out: measure → why it is not there although it is one of the default ones.
        blank: (method, layer) → how many of its maps are the same everywhere.
    """

    scores: Mapping[str, Mapping[Key, Tensor]]
    broken: Mapping[Key, int]
    images: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    blank: Mapping[Key, int] = field(default_factory=dict)
    _made: dict[str, list[Ranking]] = field(init=False, repr=False, default_factory=dict)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What was measured."""
        return tuple(MEASURES[name] for name in self.scores)

    @property
    def keys(self) -> tuple[Key, ...]:
        """(method, layer), in the order they were asked for; controls last."""
        return tuple(self.broken)

    def rankings(self, measure: str) -> list[Ranking]:
        """All maps by one measure, the best first; controls among them.

        Raises:
            WhycamError: it was not measured.
        """
        (wanted,) = find_measures([measure])
        if wanted.name not in self.scores:
            raise WhycamError(f"{wanted.title} was not measured here, only {', '.join(self.scores)}")
        if wanted.name not in self._made:  # table, page, figure and record all ask
            self._made[wanted.name] = self._ranked(wanted)
        return list(self._made[wanted.name])

    def support(self, key: Key) -> int:
        """By how many measures a method at a layer is better than every control that counts."""
        return sum(
            bool(ranking.convincing)
            for name in self.scores
            for ranking in self.rankings(name)
            if (ranking.method, ranking.layer) == key
        )

    def _ranked(self, wanted: Measure) -> list[Ranking]:
        sign = 1 if wanted.better == "higher" else -1
        scores = {key: sign * values for key, values in self.scores[wanted.name].items()}
        means = {key: _mean(values) for key, values in scores.items()}
        # What is defined for no unit stands nowhere: not the best, and behind all others.
        rank = sorted(scores, key=lambda key: (math.isnan(means[key]), -means[key]))
        first = next((key for key in rank if not _is_control(key)), rank[0])
        return [_ranking(key, scores, first, sign, wanted) for key in rank]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: of each measure its facts and rankings."""
        return {
            "images": self.images,
            "left_out": dict(self.left_out),
            "broken": [{"method": key[0], "layer": key[1], "maps": maps} for key, maps in self.broken.items() if maps],
            "blank": [{"method": key[0], "layer": key[1], "maps": maps} for key, maps in self.blank.items() if maps],
            "measures": [
                measure.facts() | {"rankings": [_written(ranking) for ranking in self.rankings(measure.name)]}
                for measure in self.measures
            ],
        }


def _written(ranking: Ranking) -> dict[str, Any]:
    return vars(ranking) | {"mean": None if math.isnan(ranking.mean) else ranking.mean}  # JSON has no NaN


def _is_control(key: Key) -> bool:
    return key[0] in CONTROLS


def _ranking(key: Key, scores: Mapping[Key, Tensor], first: Key, sign: int, measure: Measure) -> Ranking:
    own = scores[key]
    defined = own[own.isfinite()]
    verdicts = {
        name: [_difference(own, scores[rival]) for rival in _rivals(key, name, scores)]
        for name in measure.controls
        if name != key[0]
    }
    beats = tuple(name for name, found in verdicts.items() if all(verdict > 0 for verdict in found))
    return Ranking(
        method=key[0], layer=key[1], control=_is_control(key), mean=_mean(sign * own), n=len(defined),
        interval=bootstrap_interval(sign * defined) if len(defined) > 1 else None,
        best=measure.ranks and not _is_control(key) and len(defined) > 0
        and (key == first or _difference(own, scores[first]) == 0),
        beats=beats,
        loses=tuple(name for name, found in verdicts.items() if any(verdict < 0 for verdict in found)),
        convincing=None if _is_control(key) else len(beats) == len(measure.controls),
    )  # fmt: skip


def _rivals(key: Key, control: str, scores: Mapping[Key, Tensor]) -> list[Key]:
    """One control's maps: that of the same layer; all of them for a map that is of no single layer."""
    of_control = [other for other in scores if other[0] == control]
    return [other for other in of_control if other[1] == key[1]] or of_control


def _mean(values: Tensor) -> float:
    return float(values[values.isfinite()].mean())


def _difference(one: Tensor, other: Tensor) -> int:
    """1 or −1 where the mean difference, unit by unit, is told apart from 0; else 0."""
    apart = one - other
    apart = apart[apart.isfinite()]
    if sign_flip_test(apart) > LEVEL:
        return 0
    return 1 if float(apart.mean()) > 0 else -1


def compare(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[MethodLike] | MethodLike,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    *,
    preprocess: Preprocessing | None,
    measures: Sequence[str] | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> Comparison:
    """Judge explanation methods on a network by what happens to its answers, beside controls that know nothing of it.

    Every map is asked about the class that the network predicts for the unaltered image. The same images, ties and
    noise are used for all, so that differences are tested unit by unit. No measure is the truth: each alters images in
    its own way, and they disagree; what no measure tells apart from a control should not be believed.

    Args:
        model: a network with (B, K) logits; afterwards as it was.
        images: (B, C, H, W) floats in [0, 1], of the network's size, before normalization.
        methods: names or methods, controls or not; the controls ``random``, ``sobel`` and ``center`` are always added.
        layers: names or modules; by default the last spatial layer.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        measures: a name or several, see `MEASURES`; by default those of `DEFAULT` that this network and these images
            allow.
        seed: of everything drawn at random.
        batch_size: images at a time.
        progress: told (measure, done, total).

    Returns:
        A `Comparison`.

    Raises:
        WhycamError: there are fewer than two images, or something asked for is unknown or does not fit.
    """
    check_images(images)
    if len(images) < 2:
        raise WhycamError(f"{len(images)} image(s) tell nothing about spread: compare on at least 2, better on 50")
    asked = DEFAULT if measures is None else measures
    wanted = find_measures([asked] if isinstance(asked, str) else asked)
    if not wanted:
        raise WhycamError(f"no measure is asked for; there are {', '.join(MEASURES)}")
    network = unwrapped(model)
    if batch_size < 1:
        raise WhycamError(f"batch_size must be at least 1, got {batch_size}")
    prepared = preprocess or _as_they_are
    resolved = _with_controls(resolve_methods(methods))
    with in_eval_mode(network):
        found = [default_layer(network, prepared(images[:1]))] if layers is None else resolve_layers(network, layers)
        names = tuple(layer.name for layer in found)
        context = ComparisonContext(network, images, prepared, names, resolved, seed, batch_size)
        progress("maps", 0, 1)
        broken, left_out = context.broken, dict[str, str]()
        for measure in wanted:
            progress(measure.name, 0, len(wanted) * len(broken))
            try:
                measure.prepare(context)
            except WhycamError as error:
                if measures is not None:
                    raise
                left_out[measure.name] = str(error)
        wanted = tuple(measure for measure in wanted if measure.name not in left_out)
        total, scores = len(wanted) * len(broken), {measure.name: dict[Key, Tensor]() for measure in wanted}
        for done, (measure, key) in enumerate(product(wanted, broken)):
            progress(measure.name, done, total)
            scores[measure.name][key] = measure(context, key)
        progress(wanted[-1].name, total, total)
    return Comparison(scores, broken, len(images), left_out, context.blank)


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _with_controls(methods: Sequence[Method]) -> tuple[Method, ...]:
    given = [method for method in methods if method.name not in CONTROLS]
    return (*given, *resolve_methods(CONTROLS))
