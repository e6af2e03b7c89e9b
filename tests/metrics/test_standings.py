"""What stands above what, by which test, and what is told apart from nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scored import NOISE, made, shifted

from whycam.comparison.context import CONTROLS
from whycam.comparison.measures import MEASURES
from whycam.comparison.ranking import LEVEL
from whycam.comparison.rendering import (
    draw_comparison,
    text_table,
)
from whycam.errors import WhycamError
from whycam.metrics import bootstrap_interval
from whycam.metrics.statistics import sign_flip_test


def test_what_stands_above_what():
    scores = {
        ("a", "l"): shifted(0.5),
        ("b", "l"): shifted(0.499, wobble=0.1),  # not told apart from the best
        ("c", "l"): shifted(0.45),  # below the best in every image, though the intervals overlap widely
        ("d", "l"): shifted(0.0, wobble=0.01),
        ("random", "l"): shifted(0.0),
        ("sobel", "input"): shifted(0.47),
        ("center", "input"): shifted(-0.2),
    }
    found = {ranking.method: ranking for ranking in made(scores).rankings("ROAD")}
    assert [*found][:4] == ["a", "b", "sobel", "c"]
    assert [*found][-1] == "center"
    assert [found[name].best for name in "abcd"] == [True, True, False, False]
    assert found["a"].beats == ("random", "sobel", "center")
    assert found["a"].convincing
    assert found["b"].beats == ("random", "center")
    assert not found["b"].convincing
    assert found["c"].loses == ("sobel",)
    assert (found["d"].beats, found["d"].loses) == (("center",), ("sobel",))
    assert found["sobel"].control
    assert found["sobel"].convincing is None
    assert not found["sobel"].best
    assert found["a"].interval == bootstrap_interval(torch.tensor(scores["a", "l"], dtype=torch.float64))
    assert found["a"].mean == pytest.approx(0.5)


def test_lower_is_better_where_the_measure_says_so():
    scores = {("a", "l"): shifted(0.1), ("b", "l"): shifted(0.9), ("random", "l"): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    first, *_, last = made(scores, "deletion").rankings("deletion")
    assert (first.method, first.best, first.convincing, first.mean) == ("a", True, True, pytest.approx(0.1))
    assert (last.method, last.best, last.beats, last.loses) == ("b", False, (), CONTROLS)
    low, high = first.interval
    assert low < 0.1 < high


def test_no_map_has_to_differ_more_than_random_weights_do():
    scores = {("a", "l"): shifted(0.5), ("random", "l"): shifted(0.1), ("sobel", "input"): [1.0] * 8,
              ("center", "input"): [1.0] * 8}  # fmt: skip
    found = made(scores, "sanity").rankings("sanity")
    assert next(ranking for ranking in found if ranking.method == "a").convincing


def test_a_map_of_no_single_layer_has_to_beat_random_weights_at_all_of_them():
    scores = {("refinecam", "k+l"): shifted(0.3), ("random", "k"): shifted(0.1), ("random", "l"): shifted(0.4),
              ("sobel", "input"): shifted(0.0), ("center", "input"): shifted(0.0)}  # fmt: skip
    (found,) = (ranking for ranking in made(scores).rankings("road") if not ranking.control)
    assert (found.beats, found.loses) == (("sobel", "center"), ("random",))


def test_units_for_which_a_measure_is_not_defined_are_left_out():
    nan = math.nan
    scores = {("b", "l"): [nan] * 9, ("a", "l"): [nan, *[0.5, 0.6, 0.7, 0.6] * 2],
              ("random", "l"): [9.0, *[0.1, 0.2, 0.1, 0.2] * 2], ("sobel", "input"): [0.0, *[nan] * 3, *[0.0] * 5],
              ("center", "input"): [nan] * 9}  # fmt: skip
    found = {ranking.method: ranking for ranking in made(scores, "sensitivity").rankings("sensitivity")}
    assert found["a"].mean == pytest.approx(0.6)
    assert found["a"].n == 8
    assert found["a"].interval == bootstrap_interval(torch.tensor([0.5, 0.6, 0.7, 0.6] * 2, dtype=torch.float64))
    # Five units in common tell nothing apart.
    assert (found["a"].beats, found["a"].loses) == ((), ("random",))
    assert found["a"].best
    # What is defined nowhere is neither the best nor the measure of who is.
    assert [*found] == ["sobel", "a", "random", "b", "center"]
    for name in ("b", "center"):
        assert math.isnan(found[name].mean)
        assert (found[name].interval, found[name].n, found[name].best) == (None, 0, False)
    comparison = made(scores, "sensitivity")
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert text_table(comparison).splitlines()[2].split() == ["b", "l", "–", "?", "0", "of", "1"]
    draw_comparison(comparison)


def test_signs_are_flipped():
    six = torch.arange(1, 7, dtype=torch.float64)
    assert sign_flip_test(six) == sign_flip_test(-six) == 2 / 64
    assert sign_flip_test(six[:5]) == 2 / 32
    assert sign_flip_test(torch.tensor([3.0, 3.0, -3.0])) == 1  # ±3 is the least there can be
    assert sign_flip_test(torch.zeros(40)) == 1
    assert sign_flip_test(torch.zeros(0)) == 1
    many = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert sign_flip_test(many + 1) == 1 / 2001
    # t is 2 with 39 degrees of freedom, of which the two-sided p is 0.0525.
    apart = many - many.mean() + 2 * many.std() / 40**0.5
    assert sign_flip_test(apart, draws=100_000) == pytest.approx(0.0525, abs=0.005)


@pytest.mark.parametrize("n", [3, 6, 8, 20])
def test_equals_are_told_apart_once_in_twenty_times_also_where_images_are_few(n):
    draw = torch.Generator().manual_seed(n)
    apart = torch.randn(800, n, generator=draw, dtype=torch.float64)
    found = sum(sign_flip_test(row, draws=500) <= LEVEL for row in apart) / len(apart)
    assert found <= LEVEL + 2.5 * (LEVEL * (1 - LEVEL) / len(apart)) ** 0.5
    if n > 6:
        assert found > LEVEL / 2


def test_a_control_that_is_perfect_by_construction_does_not_count():
    for name in ("coherency", "sensitivity"):
        assert MEASURES[name].controls == ("random", "sobel")


def test_what_was_not_measured_has_no_standings():
    with pytest.raises(WhycamError, match="ADCC was not measured here, only road"):
        made({("a", "l"): NOISE, ("random", "l"): NOISE}).rankings("adcc")


def test_sanity_tells_who_fails_and_not_who_is_best():
    scores = {("a", "l"): shifted(0.1), ("b", "l"): shifted(0.9), ("random", "l"): shifted(0.3),
              ("sobel", "input"): [1.0] * 8, ("center", "input"): [1.0] * 8}  # fmt: skip
    assert not any(ranking.best for ranking in made(scores, "sanity").rankings("sanity"))
