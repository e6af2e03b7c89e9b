"""A comparison as it is shown: rows, marks, verdict, page and figure."""

from __future__ import annotations

import pytest
import torch
from scored import CHEAP, made, shifted

from whycam.comparison.measures import MEASURES
from whycam.comparison.ranking import Comparison
from whycam.comparison.rendering import (
    IN_A_ROW,
    draw_comparison,
    markdown_page,
    markdown_table,
    notes_on,
    row_order,
    text_table,
    verdict,
)


def test_rows_stand_by_how_many_measures_convince_and_the_verdict_says_so():
    low, high = shifted(0.1), shifted(0.9)
    rivals = {("random", "l"): shifted(0.5), ("sobel", "input"): shifted(0.5), ("center", "input"): shifted(0.5)}
    road = {("a", "l"): high, ("b", "l"): shifted(0.8), ("c", "input"): low, **rivals}
    drop = {("a", "l"): high, ("b", "l"): low, ("c", "input"): low, **rivals}

    def both(**scores):
        filled = {
            name: {key: torch.tensor(values, dtype=torch.float64) for key, values in given.items()}
            for name, given in scores.items()
        }
        return Comparison(filled, dict.fromkeys(road, 0), 8, blank={("c", "input"): 3})

    comparison = both(road=road, drop=drop)
    assert [comparison.support(key) for key in row_order(comparison)[:3]] == [2, 1, 1]
    assert row_order(comparison)[:3] == [("b", "l"), ("a", "l"), ("c", "input")]
    assert verdict(comparison) == "Better than every control by all 2 measures: b l."
    assert notes_on(comparison) == [
        "3 maps of c at input are the same everywhere: take a layer that the answer depends on"
    ]
    one_each = both(road=road, drop={**drop, ("b", "l"): high})
    assert verdict(one_each) == "Better than every control by 1 of 2 measures, none by more: a l, b l, c."
    nothing = both(road=dict.fromkeys(road, low))
    assert verdict(nothing).startswith("No map is better than every control by any of these measures")


def test_the_table_says_what_stands_out():
    scores = {("a", "l"): shifted(0.1), ("b", "l|m"): shifted(0.9), ("random", "l"): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    comparison = made(scores, "deletion")
    assert row_order(comparison)[:3] == [("a", "l"), ("b", "l|m"), ("random", "l")]
    head, *rows = text_table(comparison).splitlines()
    assert head.split() == ["method", "layer", "Deletion", "↓", "convincing"]
    assert rows[0].split() == ["a", "l", "0.100*", "1", "of", "1"]
    assert rows[1].split() == ["b", "l|m", "0.900", "?", "0", "of", "1"]
    assert rows[4].split() == ["control:", "center", "0.700"]
    _, rule, first, second, *_ = markdown_table(comparison).splitlines()
    assert rule == "| --- | --- | ---: | ---: |"
    assert first == r"| a | l | 0.100\*  | 1 of 1 |"
    assert r"l\|m" in second
    axes = draw_comparison(comparison).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["Deletion, lower is better"]
    assert len(axes[0].get_yticklabels()) == 5


LONG = "vit.encoder.layer.11.attention.output.dense.layernorm_before_the_last_projection"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("layer", "measures"), [("l", ["road"]), (LONG, ["road"]), (LONG, CHEAP), ("l", [*MEASURES])])
def test_a_figure_shows_its_words_whole_and_no_two_over_each_other(layer, measures):
    scores = {("augmented(noisy(layercam, n=4))", layer): shifted(0.1), ("random", layer): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    scores = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    figure = draw_comparison(Comparison(dict.fromkeys(measures, scores), dict.fromkeys(scores, 0), 8))
    figure.canvas.draw()
    panels = figure.axes[: len(measures)]
    titles = [panel._left_title for panel in panels]
    assert [title.get_text().split(",")[0] for title in titles] == [MEASURES[name].title for name in measures]
    labels = [label for panel in panels for label in panel.get_yticklabels() if label.get_visible()]
    boxes = [text.get_window_extent() for text in (figure._suptitle, *titles)]
    for box in (*boxes, *(label.get_window_extent() for label in labels[:4])):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert len({round(panel.get_position().x0, 3) for panel in panels}) <= IN_A_ROW


def test_the_page_says_what_is_missing_and_what_was_broken():
    scores = {("a", "l"): shifted(0.1), ("random", "l"): shifted(0.5), ("sobel", "input"): shifted(0.6),
              ("center", "input"): shifted(0.7)}  # fmt: skip
    scores = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    broken = dict.fromkeys(scores, 0) | {("a", "l"): 2}
    page = markdown_page(Comparison({"road": scores}, broken, 8, {"pointing": "too few classes"}), "8 images")
    assert "- pointing is left out: too few classes\n" in page
    assert "- 2 maps of a at l are not finite, and count as no evidence\n" in page
