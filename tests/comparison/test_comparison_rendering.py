"""Tables, verdict, page and figure of a comparison."""

from __future__ import annotations

import pytest
from comparison_helpers import FAST_METRICS, around, as_tensors, comparison_of

from whycam.comparison.ranking import Comparison
from whycam.comparison.registry import METRICS
from whycam.comparison.rendering import (
    PANELS_PER_ROW,
    draw_comparison,
    markdown_page,
    markdown_table,
    notes_on,
    row_order,
    text_table,
    verdict,
)


def test_rows_are_sorted_by_convincing_metrics_and_the_verdict_names_the_first():
    low, high = around(0.1), around(0.9)
    controls = {("random", "l"): around(0.5), ("sobel", "input"): around(0.5), ("center", "input"): around(0.5)}
    road = {("a", "l"): high, ("b", "l"): around(0.8), ("c", "input"): low, **controls}
    drop = {("a", "l"): high, ("b", "l"): low, ("c", "input"): low, **controls}

    def both(**scores):
        filled = {name: as_tensors(given) for name, given in scores.items()}
        return Comparison(filled, dict.fromkeys(road, 0), 8, blank={("c", "input"): 3})

    comparison = both(road=road, drop=drop)
    assert [comparison.n_significant(key) for key in row_order(comparison)[:3]] == [2, 1, 1]
    assert row_order(comparison)[:3] == [("b", "l"), ("a", "l"), ("c", "input")]
    assert verdict(comparison) == "Better than every control by all 2 metrics: b l."
    assert notes_on(comparison) == ["3 maps of c at input are constant: use a layer that the output depends on"]
    one_each = both(road=road, drop={**drop, ("b", "l"): high})
    assert verdict(one_each) == "Better than every control by 1 of 2 metrics, the most of all maps: a l, b l, c."
    nothing = both(road=dict.fromkeys(road, low))
    assert verdict(nothing).startswith("No map is better than every control by any of these metrics")


def test_the_table_and_its_marks():
    scores = {("a", "l"): around(0.1), ("b", "l|m"): around(0.9), ("random", "l"): around(0.5),
              ("sobel", "input"): around(0.6), ("center", "input"): around(0.7)}  # fmt: skip
    comparison = comparison_of(scores, "deletion")
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
@pytest.mark.parametrize(
    ("layer", "metrics"), [("l", ["road"]), (LONG, ["road"]), (LONG, FAST_METRICS), ("l", [*METRICS])]
)
def test_texts_of_a_figure_are_complete_and_do_not_overlap(layer, metrics):
    scores = {("augmented(noisy(layercam, n=4))", layer): around(0.1), ("random", layer): around(0.5),
              ("sobel", "input"): around(0.6), ("center", "input"): around(0.7)}  # fmt: skip
    scores = as_tensors(scores)
    figure = draw_comparison(Comparison(dict.fromkeys(metrics, scores), dict.fromkeys(scores, 0), 8))
    figure.canvas.draw()
    panels = figure.axes[: len(metrics)]
    titles = [panel._left_title for panel in panels]
    assert [title.get_text().split(",")[0] for title in titles] == [METRICS[name].title for name in metrics]
    labels = [label for panel in panels for label in panel.get_yticklabels() if label.get_visible()]
    boxes = [text.get_window_extent() for text in (figure._suptitle, *titles)]
    for box in (*boxes, *(label.get_window_extent() for label in labels[:4])):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert len({round(panel.get_position().x0, 3) for panel in panels}) <= PANELS_PER_ROW


def test_the_page_lists_metrics_left_out_and_broken_maps():
    scores = {("a", "l"): around(0.1), ("random", "l"): around(0.5), ("sobel", "input"): around(0.6),
              ("center", "input"): around(0.7)}  # fmt: skip
    scores = as_tensors(scores)
    broken = dict.fromkeys(scores, 0) | {("a", "l"): 2}
    page = markdown_page(Comparison({"road": scores}, broken, 8, {"pointing": "too few classes"}), "8 images")
    assert "- pointing is left out: too few classes\n" in page
    assert "- 2 maps of a at l are not finite and count as maps without evidence\n" in page
