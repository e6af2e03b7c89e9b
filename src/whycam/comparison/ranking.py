"""The result of a comparison: the ranking of all maps by each metric, tested against the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from whycam._lazy import renamed_attribute
from whycam.comparison.context import CONTROLS, Key
from whycam.comparison.registry import METRICS, Metric, find_metrics
from whycam.errors import WhycamError
from whycam.metrics.statistics import bootstrap_interval, sign_flip_test

LEVEL = 0.05
"""The significance level of all tests."""
FEWEST = 6
"""The smallest number of images for which a test can be significant. With fewer, all differences have the same sign by
chance in more than 5% of cases."""


@dataclass(frozen=True)
class Ranking:
    """The result of one method at one layer by one metric.

    Attributes:
        method: its name.
        layer: its name; several are joined by "+"; "input" for methods that look only at the image.
        control: whether it is a control, a map that ignores the decision.
        mean: the mean over the images for which the metric is defined; NaN if there are none.
        interval: the 95% bootstrap interval of the mean; None for fewer than two images.
        n: the number of images for which the metric is defined.
        best: whether no other map, controls aside, is significantly better: it has the best mean, or a `sign_flip_test`
            on the differences per image does not distinguish it from the best at the 5% level. False if the metric is
            defined for no image, and for metrics that only tell which maps fail.
        better_than: the controls than which it is significantly better, by the same test.
        worse_than: the controls than which it is significantly worse.
        convincing: whether it is better than all controls that count for this metric; None for controls.
    """

    method: str
    layer: str
    control: bool
    mean: float
    interval: tuple[float, float] | None
    n: int
    best: bool
    better_than: tuple[str, ...]
    worse_than: tuple[str, ...]
    convincing: bool | None

    beats = renamed_attribute("beats", "better_than")
    loses = renamed_attribute("loses", "worse_than")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. Its keys are those of version 0.1, so that old and new files can be read alike."""
        return {
            "method": self.method,
            "layer": self.layer,
            "control": self.control,
            "mean": None if math.isnan(self.mean) else self.mean,  # JSON has no NaN
            "interval": self.interval,
            "n": self.n,
            "best": self.best,
            "beats": self.better_than,
            "loses": self.worse_than,
            "convincing": self.convincing,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of all maps by all metrics.

    Attributes:
        scores: metric → (method, layer) → (n,) float64, NaN where the metric is undefined. The n images of a metric are
            the same for all keys.
        broken: (method, layer) → the number of its maps that were not finite. They count as maps without evidence.
        images: the number of images.
        left_out: default metric that could not be computed → the reason.
        blank: (method, layer) → the number of its maps that are constant.
    """

    scores: Mapping[str, Mapping[Key, Tensor]]
    broken: Mapping[Key, int]
    images: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    blank: Mapping[Key, int] = field(default_factory=dict)
    _cache: dict[str, list[Ranking]] = field(init=False, repr=False, default_factory=dict)

    measures = renamed_attribute("measures", "metrics")
    standings = renamed_attribute("standings", "rankings")
    support = renamed_attribute("support", "n_significant")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that were computed."""
        return tuple(METRICS[name] for name in self.scores)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All (method, layer), in the order of the call, with the controls last."""
        return tuple(self.broken)

    def rankings(self, metric: str) -> list[Ranking]:
        """All maps by one metric, controls included, the best first.

        Raises:
            WhycamError: the metric was not computed.
        """
        (wanted,) = find_metrics([metric])
        if wanted.name not in self.scores:
            raise WhycamError(f"{wanted.title} was not computed in this comparison, only {', '.join(self.scores)}")
        if wanted.name not in self._cache:  # table, page, figure and record all need it
            self._cache[wanted.name] = _ranked(wanted, self.scores[wanted.name])
        return list(self._cache[wanted.name])

    def n_significant(self, key: Key) -> int:
        """The number of metrics by which a method at a layer is better than every control that counts."""
        return sum(
            bool(ranking.convincing)
            for name in self.scores
            for ranking in self.rankings(name)
            if (ranking.method, ranking.layer) == key
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the facts and rankings of each metric. Its keys are those of version 0.1."""
        return {
            "images": self.images,
            "left_out": dict(self.left_out),
            "broken": _counts(self.broken),
            "blank": _counts(self.blank),
            "measures": [
                metric.facts() | {"standings": [ranking.to_dict() for ranking in self.rankings(metric.name)]}
                for metric in self.metrics
            ],
        }


def _counts(maps: Mapping[Key, int]) -> list[dict[str, Any]]:
    return [{"method": method, "layer": layer, "maps": count} for (method, layer), count in maps.items() if count]


def _ranked(metric: Metric, scores: Mapping[Key, Tensor]) -> list[Ranking]:
    """The best first; maps for which the metric is undefined come last."""
    sign = 1 if metric.better == "higher" else -1
    signed = {key: sign * values for key, values in scores.items()}  # higher is better
    means = {key: _mean(values) for key, values in signed.items()}
    order = sorted(signed, key=lambda key: (math.isnan(means[key]), -means[key]))
    first = next((key for key in order if not _is_control(key)), order[0])
    return [_ranking(key, signed, first, sign, metric) for key in order]


def _ranking(key: Key, scores: Mapping[Key, Tensor], first: Key, sign: int, metric: Metric) -> Ranking:
    own = scores[key]
    defined = own[own.isfinite()]
    differences = {
        name: [_difference(own, scores[control]) for control in _maps_of_control(name, key, scores)]
        for name in metric.controls
        if name != key[0]
    }
    better_than = tuple(name for name, signs in differences.items() if all(one > 0 for one in signs))
    return Ranking(
        method=key[0], layer=key[1], control=_is_control(key), mean=_mean(sign * own), n=len(defined),
        interval=bootstrap_interval(sign * defined) if len(defined) > 1 else None,
        best=metric.ranks and not _is_control(key) and len(defined) > 0
        and (key == first or _difference(own, scores[first]) == 0),
        better_than=better_than,
        worse_than=tuple(name for name, signs in differences.items() if any(one < 0 for one in signs)),
        convincing=None if _is_control(key) else len(better_than) == len(metric.controls),
    )  # fmt: skip


def _is_control(key: Key) -> bool:
    return key[0] in CONTROLS


def _maps_of_control(control: str, key: Key, scores: Mapping[Key, Tensor]) -> list[Key]:
    """The control's map at the same layer as ``key``, or all its maps if it has none there."""
    all_layers = [other for other in scores if other[0] == control]
    return [other for other in all_layers if other[1] == key[1]] or all_layers


def _mean(values: Tensor) -> float:
    return float(values[values.isfinite()].mean())


def _difference(one: Tensor, other: Tensor) -> int:
    """1 or −1, the sign of the mean difference per image, if it is significant; else 0."""
    differences = one - other
    differences = differences[differences.isfinite()]
    if sign_flip_test(differences) > LEVEL:
        return 0
    return 1 if float(differences.mean()) > 0 else -1
