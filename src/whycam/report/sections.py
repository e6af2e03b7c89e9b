"""The report's sections. A section is declared by one entry of ``SECTIONS``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whycam.report.charts import reliability_bars, training_charts
from whycam.report.notes import READING
from whycam.report.payload import Payload
from whycam.report.road_table import BAR_WIDTH, score_table
from whycam.report.summary import heat_levels, judge, manifest_rows

MATRIX_LIMIT = 120
"""Number of classes in the matrix. If there are more, the page says so."""
View = dict[str, Any]


def _nothing(_payload: Payload) -> View:
    return {}


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        name: its id in the page.
        title: the text of its link in the navigation.
        view: gives what its template reads as ``view``, or None if the section has nothing to show.
        scripts: its script files, which add themselves to ``sections`` in the page.
        styles: its style sheets, beside the common report.css.
        data: gives its entries of the page's data block.
    """

    name: str
    title: str
    view: Callable[[Payload], View | None] = _nothing
    scripts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    data: Callable[[Payload], dict[str, Any]] = _nothing

    @property
    def template(self) -> str:
        """The template of its markup."""
        return f"sections/{self.name.replace('-', '_')}.html"


def _verdict(payload: Payload) -> View:
    return {
        "verdict": judge(payload),
        "bars": reliability_bars(payload.metrics["reliability"]),
        "methods": payload.method_notes,
        "explained": payload.explained(),
    }


def _confusion(payload: Payload) -> View:
    counts = payload.metrics["confusion"]
    shown = _matrix_classes(counts)
    confusion = [[counts[i][j] for j in shown] for i in shown]
    return {"classes": payload.classes, "shown": shown, "confusion": confusion, "levels": heat_levels(confusion)}


def _matrix_classes(confusion: list[list[int]]) -> list[int]:
    """The classes in the matrix: all, or the ``MATRIX_LIMIT`` with the most errors."""
    k = len(confusion)
    if k <= MATRIX_LIMIT:
        return list(range(k))
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    wrong = [sum(row) + columns[i] - 2 * row[i] for i, row in enumerate(confusion)]
    return sorted(sorted(range(k), key=lambda i: -wrong[i])[:MATRIX_LIMIT])


def _label_issues(payload: Payload) -> View:
    return {"neighbors": payload.study.why_no_neighbors is None, "split": payload.manifest["data"]["split"]}


def _training(payload: Payload) -> View | None:
    model = payload.manifest["model"]
    history = model.get("training", {}).get("history") or []
    charts = training_charts(history)
    return {"history": history, "charts": charts} if charts or model["summary"] else None


def _methods(payload: Payload) -> View:
    whole = json.dumps(payload.manifest, indent=1, ensure_ascii=False, default=str)
    rows = manifest_rows(payload.manifest)
    return {"reading": READING, "methods": payload.method_notes, "rows": rows, "whole": whole}


SECTIONS = (
    Section("verdict", "Verdict", _verdict),
    Section("confusion", "Confusion", _confusion, scripts=("matrix.js",)),
    Section(
        "errors",
        "Errors",
        scripts=("controls.js", "gallery.js", "evidence.js", "neighbors.js", "detail.js"),
        data=lambda payload: {"relations": payload.relations_data()},
    ),
    Section(
        "patterns",
        "Patterns",
        lambda payload: {"scores": score_table(payload.study), "bar_width": BAR_WIDTH},
        scripts=("means.js", "patterns.js", "clusters.js"),
        data=lambda payload: {"means": payload.means_data()},
    ),
    Section("label-issues", "Labels", _label_issues, scripts=("label_issues.js",), styles=("label_issues.css",)),
    Section("training", "Training", _training),
    Section("methods", "Methods", _methods),
)
