"""Neighbors, label issues and clusters: the page shows what the tables of the study hold."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from make_study import Recipe
from PIL import Image
from test_report_opens import RECIPES
from test_report_paged import RECIPE as PAGED

from whycam.report import write_report

PLACES = """g => [...document.querySelectorAll('#detail .near-group')[g].querySelectorAll('li:not([hidden]) canvas')]
.map(c => {
  const w = c.width / 32, data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, out = [];
  for (let y = 0; y < 32; y++) for (let x = 0; x < 32; x++) {
    const o = ((y * w + (w >> 1)) * c.width + x * w + (w >> 1)) * 4;
    out.push([data[o], data[o + 1], data[o + 2]]);
  }
  return [c.title, c.ariaLabel, out];
})"""


def press(view, *keys):
    for key in keys:
        view.page.keyboard.press(key)
    view.settle()


def wait_for_neighbor_images(view):
    view.page.wait_for_function("() => whycam.relations.ids.every((_, n) => whycam.neighborPicture(n) !== null)")
    view.settle()


def selected(view):
    return view.run("whycam.selection.map(e => whycam.core.ids[e])")


def test_neighbors_are_the_tables(made, opened):
    report = made("clustered", RECIPES["clustered"])
    view = opened(report.page)
    wait_for_neighbor_images(view)
    study, classes = report.study, report.study.classes
    rows, truth = study.neighbors.to_pylist(), {row["id"]: row for row in study.predictions.to_pylist()}
    for error in (0, 7, 119):
        view.set(image=error)
        name = view.run("e => whycam.core.ids[e]", error)
        for group, (kind, column) in enumerate((("true", "label"), ("predicted", "predicted"))):
            wanted = [row for row in rows if (row["id"], row["kind"]) == (name, kind)]
            shown = view.run(PLACES, group)
            assert [title for title, _, _ in shown] == [row["neighbour_id"] for row in wanted]
            for (title, label, pixels), row in zip(shown, wanted, strict=True):
                assert f"similarity {row['similarity']:.2f}" in label
                assert classes[truth[name][column]] in label
                sure = float(re.search(r"recognized with (?:[<>])?([\d.]+)%", label)[1]) / 100
                assert sure == pytest.approx(truth[title]["confidence"], abs=1e-3)
                png = np.asarray(Image.open(io.BytesIO(study.images[title])).convert("RGB"))
                assert (np.asarray(pixels).reshape(32, 32, 3) == png).all()
        votes = [truth[row["neighbour_id"]]["label"] for row in rows if (row["id"], row["kind"]) == (name, "any")]
        said = view.page.inner_text("#detail .near > .note")
        found = re.search(r"Of the (\d+) nearest images of any class (\d+) (?:is|are) labeled .* and (\d+) ", said)
        ballot = [len(votes), votes.count(truth[name]["predicted"]), votes.count(truth[name]["label"])]
        assert [int(n) for n in found.groups()] == ballot


def test_label_issues_are_in_the_order_of_the_study(made, opened):
    report = made("clustered", RECIPES["clustered"])
    view = opened(report.page)
    wanted = [row["id"] for row in report.study.label_issues.to_pylist() if row["suspect"]]
    assert len(wanted) > 24
    said = f"{len(wanted)} errors of 120 are worth a look by this rule"
    assert view.page.inner_text("#label-issues-count") == f"{said}; the 24 with the highest score are shown."
    assert view.page.locator(".label-issue").count() == 24
    view.page.click("#label-issues-more")
    assert view.page.inner_text("#label-issues-count") == f"{said}."
    assert view.page.locator(".label-issue").count() == len(wanted)
    view.page.select_option("#filters [name=label]", "issue")
    view.page.select_option("#filters [name=sort]", "issue")
    view.settle()
    assert selected(view) == wanted
    assert view.count() == f"{len(wanted)} of 120 errors"
    view.page.select_option("#filters [name=label]", "")
    view.settle()
    assert selected(view) == report.study.label_issues["id"].to_pylist()


def test_clusters_are_the_tables_and_hold_every_error_once(made, opened):
    report = made("clustered", RECIPES["clustered"])
    view = opened(report.page)
    rows = report.study.clusters.to_pylist()
    found = []
    for cluster in range(view.run("whycam.clusters.length")):
        view.page.select_option("#filters [name=cluster]", str(cluster))
        view.settle()
        wanted = [row for row in rows if row["cluster"] == cluster]
        assert sorted(selected(view)) == sorted(row["id"] for row in wanted)
        medoid = max(wanted, key=lambda row: row["similarity"])["id"]
        assert view.run("c => whycam.core.ids[whycam.clusters[c].medoid]", cluster) == medoid
        card = view.page.locator("#clusters-list > li").nth(cluster)
        assert f"Show {len(wanted)} errors" in card.inner_text()
        assert f"mean of {len(wanted)}" in card.inner_text()
        found += selected(view)
    assert len(found) == len(set(found)) == 120
    view.page.wait_for_function("n => location.hash.includes(`cluster=${n}`)", arg=len(report.study.clusters) // 40)
    again = opened(report.page, hash=view.run("location.hash.slice(1)"))
    assert again.run("whycam.state") == view.run("whycam.state")


SCORE_TABLE = """() => [...document.querySelectorAll('table.scores tbody tr')].map(row => [...row.cells].map(
  cell => cell.innerText.trim().replace(/\\s+/g, ' ').replaceAll('\u2212', '-')))"""


def test_cluster_means_equal_a_slow_mean(made, opened):
    report = made("clustered", RECIPES["clustered"])
    view = opened(report.page)
    study = report.study
    members = {row["id"] for row in study.clusters.to_pylist() if row["cluster"] == 1}
    wanted = ("hirescam", "layer3[-2]", "predicted")
    rows = [row for row in study.maps.to_pylist() if (row["method"], row["layer"], row["target"]) == wanted]
    maps = [study.raw_map(row) for row in rows if row["id"] in members]
    mean = np.mean(maps, axis=0).ravel()
    shown = view.run("() => { const m = whycam.clusterMean(0, 1, 1, 1); return [m.n, [...m.values]]; }")
    assert shown[0] == len(maps) == len(members)
    assert np.abs(np.array(shown[1]) - mean).max() <= (mean.max() - min(0, mean.min())) / 254 * 1.01
    check_scores(view, study)


def check_scores(view, study):
    """The table is real, and holds the means of the Parquet's rows, in its order, with the intervals of the metrics."""
    rows = study.scores.to_pylist()
    titles = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "noise": "Control: noise", "center": "Control: center"}
    keys = list(dict.fromkeys((row["layer"], row["method"]) for row in rows))
    intervals = {(e["layer"], e["method"]): e["interval"] for e in study.metrics["map_scores"]}
    shown = view.run(SCORE_TABLE)
    assert len(shown) == len(keys) == 8
    above = 0
    for (layer, method), (name, score, against, morf, lerf, n) in zip(keys, shown, strict=True):
        mine = [row for row in rows if (row["layer"], row["method"]) == (layer, method)]
        assert name == (titles[method] if layer == "input" else f"{layer} {titles[method]}")
        means = [np.mean([row[column] for row in mine], dtype=np.float64) for column in ("combined", "morf", "lerf")]
        low, high = intervals[layer, method]
        assert score == f"{means[0]:.3f} {low:.3f} to {high:.3f}"
        assert (morf, lerf, n) == (f"{means[1]:.3f}", f"{means[2]:.3f}", "40")
        better = low > intervals["input", "noise"][1]
        assert against == ("–" if layer == "input" else "above" if better else "not told apart")
        above += better
    assert above == 4
    said = view.page.inner_text("#scores-findings")
    assert "Grad-CAM at layer3[-2] and layer4[-1]; HiResCAM at layer3[-2] and layer4[-1]: better than noise" in said
    assert "Grad-CAM at layer2[-2]; HiResCAM at layer2[-2]: not told apart from noise" in said
    assert "40 of 120 errors, drawn with seed 0," in view.page.inner_text("#scores-lead")


def test_clusters_and_label_issues_work_by_keyboard(made, opened):
    view = opened(made("clustered", RECIPES["clustered"]).page)
    view.run("document.getElementById('clusters-lead').scrollIntoView()")
    view.run("document.getElementById('patterns-title').focus()")
    press(view, "Tab")
    assert view.run("document.activeElement.ariaLabel").startswith("Show the ")
    view.set(palette="cividis")  # which draws the cards anew
    assert view.run("document.activeElement.ariaLabel").startswith("Show the ")
    press(view, "Enter")
    assert view.run("whycam.state.cluster") == 0
    assert view.run("document.activeElement.ariaPressed") == "true"
    press(view, "Enter")
    assert view.run("whycam.state.cluster") == -1
    for _ in range(view.run("whycam.clusters.length")):
        press(view, "Tab")
    assert view.run("document.activeElement.className") == "label-issue"
    press(view, "Tab", "Enter")
    second = view.run("whycam.selection[1]")
    assert view.run("[whycam.state.label, whycam.state.sort, whycam.state.image]") == ["issue", "issue", second]
    assert view.run("document.activeElement.error") == second


@pytest.mark.parametrize("name", ["older", "headless"])
def test_reports_without_neighbors_give_the_reason(name, made, opened):
    report = made(name, RECIPES["older"])
    if name == "headless":
        path = report.study.path / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"features": None}))
        write_report(type(report.study).load(report.study.path), report.page)
    view = opened(report.page)
    why = "made before whycam recorded neighbors" if name == "older" else "not that of one linear layer"
    assert why in view.page.inner_text("#detail .near")
    assert why in view.page.inner_text("#clusters-lead")
    assert "made before whycam scored its maps" in view.page.inner_text("#scores-lead")
    assert view.page.locator("table.scores").count() == 0
    assert not view.page.is_visible("#filters [name=cluster]")
    assert "nearest images" not in view.page.inner_text("#label-issues .lead")
    view.set(sort="issue")
    assert selected(view) == report.study.label_issues["id"].to_pylist()


def test_neighbors_beyond_the_budget_are_named(made, opened, tmp_path):
    study = made("clustered", RECIPES["clustered"]).study
    whole = write_report(study, tmp_path / "whole.html")
    tight = write_report(study, tmp_path / "tight.html", budget=whole.stat().st_size - 30_000)
    assert tight.stat().st_size < whole.stat().st_size - 30_000
    view = opened(tight)
    pictured = view.run("whycam.relations.pictured")
    assert pictured in (1, 2)
    said = view.page.inner_text("#detail .near")
    assert f"nearest {'one is' if pictured == 1 else '2 are'} pictured and the others named" in said
    named = view.page.locator("#detail .near .no-picture:visible").all_inner_texts()
    name = view.run("whycam.core.ids[whycam.state.image]")
    rest = [r["neighbour_id"] for r in study.neighbors.to_pylist()
            if r["id"] == name and r["kind"] != "any" and r["rank"] > pictured]  # fmt: skip
    have = view.run("[...document.querySelectorAll('#detail .near canvas')].filter(c => c.checkVisibility()).length")
    # A picture that came in with another error's nearest is there, too.
    assert set(named) <= set(rest)
    assert len(named) + have == 6


def test_paged_neighbors_come_from_files(made, opened):
    report = made("paged", PAGED, budget=400_000)
    view = opened(report.page)
    assert view.run("whycam.relations.pictured") == 3
    first = len(set(view.requests))
    assert first < 1 + len(list(report.page.with_name("report_files").iterdir()))
    view.page.wait_for_function(
        "() => [...document.querySelectorAll('#detail .near li:not([hidden]) canvas')]"
        ".every(c => c.getContext('2d').getImageData(5, 5, 1, 1).data[3] === 255)"
    )
    # Neighbors of images of 224 pixels are kept at 96.
    assert view.run("whycam.neighborPicture(whycam.relations.links[0]).width") == 96


def test_without_errors_there_are_no_label_issues(made, opened):
    view = opened(made("none", Recipe(n=50, errors=0)).page)
    assert view.page.inner_text("#label-issues-count") == "There is no error, so there is nothing to suspect."
    assert "fewer than 80" in view.page.inner_text("#clusters-lead")
