"""The report's table of scores and its sentences."""

from __future__ import annotations

import pytest
from make_study import Recipe, make_study

from whycam.report.road_table import BAR_WIDTH, score_table
from whycam.study.folder import Study


def entry(method, layer, low, high, n=40, verdict="unclear", **more):
    few = n < 2
    middle = (low + high) / 2
    return {
        "method": method, "layer": layer, "n": n, "unranked": 0, "combined": middle if n else None,
        "morf": 0.3 if n else None, "lerf": 0.3 + 2 * middle if n else None, "before": 0.75,
        "interval": None if few else [low, high], "percentiles": [20.0, 50.0, 80.0], "verdict": verdict,
    } | more  # fmt: skip


CONTROLS = [
    entry("noise", "input", -0.05, 0.05, verdict=None),
    entry("center", "input", 0.0, 0.1, verdict=None),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study.load(make_study(tmp_path_factory.mktemp("scored") / "s", Recipe(n=200, errors=60)))


def table_of(study, entries):
    return score_table(Study(study.path, study.manifest, dict(study.metrics) | {"map_scores": entries}))


def test_sentence_of_each_verdict(study):
    maps = [
        entry("gradcam", "a", 0.1, 0.2, verdict="above"),
        entry("gradcam", "b", 0.0, 0.1),
        entry("gradcam", "c", -0.3, -0.2, verdict="below"),
    ]
    table = table_of(study, [*maps, *CONTROLS])
    assert table.why is None
    assert table.findings == (
        "Grad-CAM at a: better than noise. The interval lies above the noise control’s.",
        "No interval lies above the center control’s: not told apart from pointing at the middle of every image.",
        "Grad-CAM at b: not told apart from noise. The intervals overlap.",
        "Grad-CAM at c: worse than noise. The interval lies below the noise control’s.",
    )
    assert [row.against for row in table.rows] == ["above", "not told apart", "below", "–", "–"]
    assert (table.rows[2].score, table.rows[2].interval) == ("−0.250", "−0.300 to −0.200")
    assert "40 of 60 errors, drawn with seed 0," in table.lead
    assert "20, 50 and 80% of them" in table.lead
    assert "before, it is 0.750" in table.lead
    better = entry("gradcam", "d", 0.15, 0.2, verdict="above")
    assert table_of(study, [better, *maps, *CONTROLS]).findings[:2] == (
        "Grad-CAM at d and a: better than noise. The interval lies above the noise control’s.",
        "Grad-CAM at d: better than the center control as well.",
    )
    # On the bar: in order, within it, and equal scores in equal places.
    for row in table.rows:
        middle, low, high = row.bar
        assert 0 < low <= middle <= high < BAR_WIDTH
    assert table.band == table.rows[3].bar[1:]
    assert table.zero == table.rows[3].bar[0] == table.rows[1].bar[1]


def test_many_maps_are_counted_and_maps_without_score_are_named(study):
    maps = [entry("gradcam", f"layer{i}", 0.1, 0.2, verdict="above", unranked=i % 2) for i in range(8)]
    table = table_of(study, [*maps, *CONTROLS])
    assert table.findings[0].startswith("8 of 8 maps (see the table): better than noise.")
    assert table.findings[-1].startswith("4 maps hold values that are not finite")


def test_fewer_than_two_images_have_no_interval(study):
    entries = [
        entry("gradcam", "a", 0.1, 0.2, n=1), entry("gradcam", "b", 0, 0, n=0, unranked=1),
        entry("noise", "input", 0, 0.1, n=1, verdict=None), entry("center", "input", 0, 0.1, n=1, verdict=None),
    ]  # fmt: skip
    table = table_of(study, entries)
    assert [(row.interval, row.bar) for row in table.rows] == [("", ())] * 4
    assert (table.rows[1].score, table.rows[1].morf) == ("–", "–")
    assert "not told apart from noise. The intervals overlap, or there are too few images for one." in table.findings[0]
    assert table.findings[1].startswith("1 map holds values")


def test_studies_without_scores_give_a_reason_in_the_report(tmp_path):
    for scores, errors, why in ((None, 5, "before whycam scored"), (0, 5, "--score-images 0"), (9, 0, "is no error")):
        recipe = Recipe(n=30, errors=errors, scores=scores, neighbors=False)
        table = score_table(Study.load(make_study(tmp_path / f"{scores}", recipe)))
        assert why in table.why
        assert not table.rows
