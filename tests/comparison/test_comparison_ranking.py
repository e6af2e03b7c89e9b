"""Rankings: order, significance, controls, and undefined scores."""

from __future__ import annotations

import json
import math

import pytest
import torch
from comparison_helpers import NOISE, around, comparison_of

from whycam.comparison.context import CONTROLS
from whycam.comparison.rendering import (
    draw_comparison,
    text_table,
)
from whycam.errors import WhycamError
from whycam.metrics import bootstrap_interval


def test_rankings_by_mean_with_tests_against_the_best_and_the_controls():
    scores = {
        ("a", "l"): around(0.5),
        ("b", "l"): around(0.499, alternating=0.1),  # not significantly different from the best
        ("c", "l"): around(0.45),  # worse than the best on every image, although the intervals overlap
        ("d", "l"): around(0.0, alternating=0.01),
        ("random", "l"): around(0.0),
        ("sobel", "input"): around(0.47),
        ("center", "input"): around(-0.2),
    }
    found = {ranking.method: ranking for ranking in comparison_of(scores).rankings("ROAD")}
    assert [*found][:4] == ["a", "b", "sobel", "c"]
    assert [*found][-1] == "center"
    assert [found[name].best for name in "abcd"] == [True, True, False, False]
    assert found["a"].better_than == ("random", "sobel", "center")
    assert found["a"].convincing
    assert found["b"].better_than == ("random", "center")
    assert not found["b"].convincing
    assert found["c"].worse_than == ("sobel",)
    assert (found["d"].better_than, found["d"].worse_than) == (("center",), ("sobel",))
    assert found["sobel"].control
    assert found["sobel"].convincing is None
    assert not found["sobel"].best
    assert found["a"].interval == bootstrap_interval(torch.tensor(scores["a", "l"], dtype=torch.float64))
    assert found["a"].mean == pytest.approx(0.5)


def test_metrics_where_lower_is_better():
    scores = {("a", "l"): around(0.1), ("b", "l"): around(0.9), ("random", "l"): around(0.5),
              ("sobel", "input"): around(0.6), ("center", "input"): around(0.7)}  # fmt: skip
    first, *_, last = comparison_of(scores, "deletion").rankings("deletion")
    assert (first.method, first.best, first.convincing, first.mean) == ("a", True, True, pytest.approx(0.1))
    assert (last.method, last.best, last.better_than, last.worse_than) == ("b", False, (), CONTROLS)
    low, high = first.interval
    assert low < 0.1 < high


def test_the_sanity_metric_does_not_count_the_random_control():
    scores = {("a", "l"): around(0.5), ("random", "l"): around(0.1), ("sobel", "input"): [1.0] * 8,
              ("center", "input"): [1.0] * 8}  # fmt: skip
    found = comparison_of(scores, "sanity").rankings("sanity")
    assert next(ranking for ranking in found if ranking.method == "a").convincing


def test_a_map_of_several_layers_must_be_better_than_the_control_at_each():
    scores = {("refinecam", "k+l"): around(0.3), ("random", "k"): around(0.1), ("random", "l"): around(0.4),
              ("sobel", "input"): around(0.0), ("center", "input"): around(0.0)}  # fmt: skip
    (found,) = (ranking for ranking in comparison_of(scores).rankings("road") if not ranking.control)
    assert (found.better_than, found.worse_than) == (("sobel", "center"), ("random",))


def test_images_with_undefined_scores_are_left_out():
    nan = math.nan
    scores = {("b", "l"): [nan] * 9, ("a", "l"): [nan, *[0.5, 0.6, 0.7, 0.6] * 2],
              ("random", "l"): [9.0, *[0.1, 0.2, 0.1, 0.2] * 2], ("sobel", "input"): [0.0, *[nan] * 3, *[0.0] * 5],
              ("center", "input"): [nan] * 9}  # fmt: skip
    found = {ranking.method: ranking for ranking in comparison_of(scores, "sensitivity").rankings("sensitivity")}
    assert found["a"].mean == pytest.approx(0.6)
    assert found["a"].n == 8
    assert found["a"].interval == bootstrap_interval(torch.tensor([0.5, 0.6, 0.7, 0.6] * 2, dtype=torch.float64))
    # Five images in common are too few for a significant difference.
    assert (found["a"].better_than, found["a"].worse_than) == ((), ("random",))
    assert found["a"].best
    # Maps without a defined score come last and are never the best.
    assert [*found] == ["sobel", "a", "random", "b", "center"]
    for name in ("b", "center"):
        assert math.isnan(found[name].mean)
        assert (found[name].interval, found[name].n, found[name].best) == (None, 0, False)
    comparison = comparison_of(scores, "sensitivity")
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert text_table(comparison).splitlines()[2].split() == ["b", "l", "–", "?", "0", "of", "1"]
    draw_comparison(comparison)


def test_a_metric_that_was_not_computed_has_no_rankings():
    with pytest.raises(WhycamError, match="ADCC was not computed in this comparison, only road"):
        comparison_of({("a", "l"): NOISE, ("random", "l"): NOISE}).rankings("adcc")


def test_the_sanity_metric_has_no_best_map():
    scores = {("a", "l"): around(0.1), ("b", "l"): around(0.9), ("random", "l"): around(0.3),
              ("sobel", "input"): [1.0] * 8, ("center", "input"): [1.0] * 8}  # fmt: skip
    assert not any(ranking.best for ranking in comparison_of(scores, "sanity").rankings("sanity"))
