"""The registry of the metrics by which explanation methods are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from whycam.comparison.context import CONTROLS, ComparisonContext, Key
from whycam.device import in_double
from whycam.errors import WhycamError, near_misses

Function = Callable[[ComparisonContext, Key], Tensor]
Better = Literal["higher", "lower"]


def _prepare_nothing(_context: ComparisonContext) -> None:
    pass


@dataclass(frozen=True)
class Metric:
    """A metric of maps.

    Attributes:
        name: the name to ask for it, in lower case.
        title: the name in tables.
        better: whether higher or lower values are better.
        paper: where it was published.
        summary: one line, the first of the function's docstring.
        function: (`ComparisonContext`, (method, layer)) → (n,), one number for each of the first n images; n is the
            same for all keys.
        prepare: called before anything is scored, to refuse early what cannot work.
        controls: the controls that a map should be better than.
        ranks: whether a better value means a better map; if False, the metric only tells which maps fail.
    """

    name: str
    title: str
    better: Better
    paper: str
    summary: str
    function: Function = field(repr=False)
    prepare: Callable[[ComparisonContext], object] = field(repr=False, default=_prepare_nothing)
    controls: tuple[str, ...] = CONTROLS
    ranks: bool = True

    def facts(self) -> dict[str, Any]:
        """The JSON form, without the functions."""
        return {name: getattr(self, name) for name in ("name", "title", "better", "paper", "summary", "controls")}

    def __call__(self, context: ComparisonContext, key: Key) -> Tensor:
        """Score a method at a layer: (n,) float64 on the CPU; NaN where the metric is undefined for an image."""
        return in_double(self.function(context, key)).cpu()


METRICS: dict[str, Metric] = {}


def metric(
    title: str,
    *,
    better: Better,
    paper: str,
    prepare: Callable[[ComparisonContext], object] = _prepare_nothing,
    controls: tuple[str, ...] = CONTROLS,
    ranks: bool = True,
) -> Callable[[Function], Metric]:
    """Register the decorated function as a metric. Its name is the title in lower case, without separators.

    See `Metric` for the arguments.

    Raises:
        WhycamError: the name is taken, or the function has no docstring.
    """

    def register(function: Function) -> Metric:
        name = _plain(title)
        if name in METRICS:
            raise WhycamError(f"there is a metric {name!r} already")
        lines = (function.__doc__ or "").strip().splitlines()
        if not lines:
            raise WhycamError(f"metric {title!r} needs a docstring: users see its first line")
        METRICS[name] = Metric(name, title, better, paper, lines[0], function, prepare, controls, ranks)
        return METRICS[name]

    return register


def find_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Metrics by name; case, hyphens, underscores and spaces do not matter.

    Raises:
        WhycamError: there is no such metric; the message names similar ones.
    """
    found: dict[str, Metric] = {}
    for name in names:
        known = METRICS.get(_plain(name))
        if known is None:
            raise WhycamError(
                f"there is no metric {name!r}{near_misses(_plain(name), METRICS)}; `whycam measures` lists all"
            )
        found[known.name] = known
    return tuple(found.values())


def _plain(title: str) -> str:
    return title.lower().replace(" ", "").replace("-", "").replace("_", "")
