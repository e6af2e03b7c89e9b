"""The registry of metrics: user-defined metrics, names, and the old names."""

from __future__ import annotations

import pytest
import torch
from comparison_helpers import LAYER, SmallNet, around, comparison_of, normalize, random_images

import whycam
import whycam.metrics
from whycam.comparison import METRICS, ComparisonContext, Metric, compare, metric
from whycam.comparison.registry import find_metrics
from whycam.errors import WhycamError


@pytest.fixture
def small():
    torch.manual_seed(3)
    return SmallNet().train()


def test_a_user_defined_metric(small):
    @metric("My Metric", better="higher", paper="nowhere")
    def mine(context, key):
        """The largest value.

        More of it below.
        """
        return context.maps[key].amax(dim=(1, 2))

    try:
        assert find_metrics(["my-metric", "ROAD", "road"]) == (mine, METRICS["road"])
        assert mine.facts()["summary"] == "The largest value."
        found = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize, metrics=["My_Metric"])
        maps = whycam.explain(small.eval(), normalize(random_images()), LAYER).map()
        torch.testing.assert_close(found.scores["mymetric"]["gradcam", LAYER], maps.amax(dim=(1, 2)).double())
        with pytest.raises(WhycamError, match="there is a metric 'mymetric' already"):
            metric("My Metric", better="higher", paper="nowhere")(lambda context, key: context.maps[key])
    finally:
        METRICS.pop("mymetric")
    with pytest.raises(WhycamError, match="metric 'Mute' needs a docstring"):
        metric("Mute", better="higher", paper="nowhere")(lambda context, key: context.maps[key])


def test_metrics_where_a_control_is_perfect_by_construction_do_not_count_it():
    for name in ("coherency", "sensitivity"):
        assert METRICS[name].controls == ("random", "sobel")


def test_old_names_still_work_with_a_warning(small):
    for old, new in (("MEASURES", METRICS), ("Measure", Metric), ("measure", metric), ("Contest", ComparisonContext)):
        with pytest.warns(DeprecationWarning, match=f"whycam.metrics.{old} is now whycam.comparison:?"):
            assert getattr(whycam.metrics, old) is new
    with pytest.warns(DeprecationWarning, match=r"compare\(measures=...\) is now metrics="):
        found = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize, measures="drop")
    assert list(found.scores) == ["drop"]
    (first, *_) = found.rankings("drop")
    for owner, old, expected in (
        (found, "measures", found.metrics),
        (first, "beats", first.better_than),
        (first, "loses", first.worse_than),
    ):
        with pytest.warns(DeprecationWarning, match=f"{type(owner).__name__}.{old} is now "):
            assert getattr(owner, old) == expected
    with pytest.warns(DeprecationWarning, match="Comparison.standings is now rankings"):
        assert found.standings("drop") == found.rankings("drop")
    with pytest.warns(DeprecationWarning, match="Comparison.support is now n_significant"):
        assert found.support(found.keys[0]) == found.n_significant(found.keys[0])


def test_the_json_form_keeps_its_keys():
    scores = {("a", "l"): around(0.5), ("random", "l"): around(0.1), ("sobel", "input"): around(0.2),
              ("center", "input"): around(0.9)}  # fmt: skip
    record = comparison_of(scores).to_dict()
    assert list(record) == ["images", "left_out", "broken", "blank", "measures"]
    (road,) = record["measures"]
    assert list(road) == ["name", "title", "better", "paper", "summary", "controls", "standings"]
    standing = next(one for one in road["standings"] if one["method"] == "a")
    assert list(standing) == [
        "method", "layer", "control", "mean", "interval", "n", "best", "beats", "loses", "convincing",
    ]  # fmt: skip
    assert (standing["beats"], standing["loses"]) == (("random", "sobel"), ("center",))
