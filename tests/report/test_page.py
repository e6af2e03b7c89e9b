"""The page as a file: inert data, a matching policy, reproducible bytes, whole files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from make_study import CIFAR10, HOSTILE, Recipe, make_study

from whycam.errors import WhycamError
from whycam.report import write_report
from whycam.report.charts import nice_ticks, reliability_bars, training_charts
from whycam.report.frontend import asset
from whycam.report.payload import Payload
from whycam.report.sections import MATRIX_LIMIT
from whycam.report.summary import heat_levels, judge
from whycam.study.folder import Study

HISTORY = [
    {"epoch": e, "train_loss": 2 / e, "train_accuracy": 1 - 0.5 / e, "test_loss": 2.1 / e,
     "test_accuracy": 1 - 0.6 / e, "lr": 0.1 / e}
    for e in range(1, 6)
]  # fmt: skip


class Outline(HTMLParser):
    """Elements, their attributes and the text of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.inner, self.inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")
        if self.inside:
            self.inner.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attrs, text = self.inner[-1]
            self.inner[-1] = (tag, attrs, text + data)


def outline(path):
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return Study.load(make_study(tmp_path_factory.mktemp("hostile"), Recipe(n=60, errors=20, classes=HOSTILE)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study.load(make_study(tmp_path_factory.mktemp("plain"), Recipe(n=300, errors=40, history=HISTORY)))


def test_class_names_are_escaped(hostile, study, tmp_path):
    plain = outline(write_report(study, tmp_path / "plain.html"))
    bad = outline(write_report(hostile, tmp_path / "bad.html"))
    kinds = {"script", "b", "style"}
    assert [t for t, _ in bad.tags if t in kinds] == [t for t, _ in plain.tags if t in kinds]
    data = next(text for tag, attrs, text in bad.inner if attrs.get("id") == "core")
    assert not set("<>&\u2028\u2029") & set(data)
    assert json.loads(data)["classes"] == list(HOSTILE)


def test_the_policy_allows_only_the_own_script_and_style(study, tmp_path):
    page = outline(write_report(study, tmp_path / "report.html"))
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
              for tag, attrs, text in page.inner if attrs.get("type") != "application/json"}  # fmt: skip
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "strict-dynamic" not in policy
    assert not any("style" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in page.tags)


def test_the_page_links_only_to_itself(study, tmp_path):
    page = outline(write_report(study, tmp_path / "report.html"))
    links = [v for _, attrs in page.tags for name, v in attrs.items() if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(link.startswith("#") for link in links)


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    first = write_report(study, tmp_path / "a.html").read_bytes()
    assert write_report(study, tmp_path / "b.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_matrix_and_verdict_need_no_script(study, tmp_path):
    text = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    table = re.search(r"<table id=\"matrix\".*?</table>", text, re.S).group()
    counts = [int(n) for n in re.findall(r"<td class=\"(?:c\d|d)\">(\d+)</td>", table)]
    assert sum(counts) == 300
    assert "40 of 300 images misclassified" in text
    assert "<polyline" in text


def test_an_unwritable_path_is_reported(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WhycamError, match="cannot be written"):
        write_report(study, tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_classes_left_out_of_the_matrix_are_counted(tmp_path):
    classes = tuple(f"c{i}" for i in range(MATRIX_LIMIT + 30))
    study = Study.load(make_study(tmp_path / "s", Recipe(n=1500, errors=200, classes=classes)))
    text = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{MATRIX_LIMIT} of {MATRIX_LIMIT + 30} classes are in the matrix" in text


def test_a_thousand_errors_of_four_methods_fit_the_budget(tmp_path):
    methods = ("gradcam", "hirescam", "third", "fourth")
    recipe = Recipe(n=2000, errors=1000, methods=methods, noise=True)
    study = Study.load(make_study(tmp_path / "s", recipe))
    page = write_report(study, tmp_path / "report.html")
    assert page.stat().st_size < 10_000_000
    data = next(text for tag, attrs, text in outline(page).inner if attrs.get("id") == "core")
    assert json.loads(data)["relations"]["pictured"] >= 1
    assert not (tmp_path / "report_files").exists()


def words(finding):
    return "".join(text for text, _ in finding)


def test_findings_agree_with_the_tables(study):
    payload = Payload(study)
    verdict = judge(payload)
    table = study.errors.to_pylist()
    pairs = {}
    for row in table:
        key = frozenset((row["label"], row["predicted"]))
        pairs[key] = pairs.get(key, 0) + 1
    assert f"{max(pairs.values())} times" in words(verdict.findings[0])
    worst = min(study.metrics["per_class"], key=lambda row: row["accuracy"])
    assert f"The hardest class is {worst['class']}: {worst['correct']} of {worst['n']} right" in words(
        verdict.findings[1]
    )
    sure = sum(row["confidence"] >= 0.9 for row in table)
    assert words(verdict.findings[2]).startswith(f"{sure} of 40 errors")
    issues = sum(row["suspect"] for row in study.label_issues.to_pylist())
    assert words(verdict.findings[-1]).startswith(f"For {issues} of the errors ({issues / 40:.0%}), the label")
    assert any("300 images are few" in caveat for caveat in verdict.caveats)
    assert any("54 of CIFAR-10's 10,000 test labels are confirmed wrong" in caveat for caveat in verdict.caveats)


def test_verdict_without_errors(tmp_path):
    study = Study.load(make_study(tmp_path, Recipe(n=30, errors=0)))
    verdict = judge(Payload(study))
    assert verdict.headline == "All 30 images classified correctly"
    assert words(verdict.findings[0]) == "There is nothing to explain: every prediction matches its label."


def test_heat_levels_grow_with_the_count_off_the_diagonal():
    assert heat_levels([[90, 1, 0], [4, 80, 36], [9, 16, 70]]) == [
        ["d", "c1", "z"],
        ["c2", "d", "c6"],
        ["c3", "c4", "d"],
    ]
    assert heat_levels([[5]]) == [["d"]]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.131, 2.9), (-3, 900), (1e-6, 3e-6), (92.1, 92.4)])
def test_ticks_cover_the_range_in_round_steps(low, high):
    ticks = nice_ticks(low, high)
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert steps == {1.0}


def test_charts_contain_their_numbers_as_text():
    loss, accuracy, rate = training_charts(HISTORY)
    assert loss.summary == "Loss by epoch up to 5: training from 2.000 to 0.400; test from 2.100 to 0.420."
    assert [line.name for line in accuracy.lines] == ["training 90.0%", "test 88.0%"]
    assert rate.title == "Learning rate"
    assert abs(accuracy.lines[0].end[1] - accuracy.lines[1].end[1]) >= 14
    assert training_charts([{"epoch": 1}]) == []
    assert len(training_charts(HISTORY[:1])) == 3


def test_reliability_bars_leave_out_empty_bins(study):
    bins = study.metrics["reliability"]
    assert len(reliability_bars(bins)) == sum(row["n"] > 0 for row in bins)


def test_scripts_cannot_end_their_element():
    for name in ("report.css", "data.js", "detail.js", "gallery.js", "words.js", "state.js", "export.js", "main.js"):
        assert "</" not in asset(name).replace("</svg>", "").replace("</text>", "").replace("</g>", "")
    assert len(CIFAR10) == 10
