"""Small charts laid out for static SVG: no script, sharp in print, numbers as text, colors from the page's theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line of a chart: label, CSS class, polyline, (x, y, text) of each point, place of the label; in SVG units."""

    name: str
    style: str
    points: str
    marks: tuple[tuple[float, float, str], ...]
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A line chart in SVG units.

    Attributes:
        title: its heading.
        ticks_x: (position, label) along the bottom.
        ticks_y: (position, label) along the left.
        lines: its lines, each labeled at the last point.
        summary: the text alternative, one sentence.
    """

    title: str
    width: int
    height: int
    left: int
    right: int
    bottom: int
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    summary: str


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 230, 48, 112, 12, 28
SERIES = {"train": ("training", "s1"), "test": ("test", "s2")}


def training_charts(history: Sequence[dict[str, Any]]) -> list[Chart]:
    """Charts of loss, accuracy and learning rate by epoch, of those that the history holds."""
    charts = []
    for key, title, form in (
        ("loss", "Loss", lambda v: f"{v:.3f}"),
        ("accuracy", "Accuracy", lambda v: f"{v:.1%}"),
    ):
        series = [
            (
                name,
                style,
                [(float(row["epoch"]), float(row[f"{prefix}_{key}"])) for row in history if _has(row, prefix, key)],
            )
            for prefix, (name, style) in SERIES.items()
        ]
        series = [item for item in series if item[2]]
        if series:
            charts.append(_chart(title, series, form))
    rate = [(float(row["epoch"]), float(row["lr"])) for row in history if row.get("lr") is not None]
    if rate:
        charts.append(_chart("Learning rate", [("learning rate", "s3", rate)], lambda v: f"{v:.3g}"))
    return charts


def _has(row: dict[str, Any], prefix: str, key: str) -> bool:
    return row.get("epoch") is not None and row.get(f"{prefix}_{key}") is not None


def _chart(
    title: str, series: Sequence[tuple[str, str, list[tuple[float, float]]]], form: Callable[[float], str]
) -> Chart:
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    x0, x1 = min(xs), max(xs)
    ticks = nice_ticks(min(ys), max(ys))
    y0, y1 = min(ticks[0], *ys), max(ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0) if y1 > y0 else 0.5
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    lines = []
    for name, style, points in series:
        placed = [place(x, y) for x, y in points]
        marks = tuple(
            (px, py, f"{name}, epoch {x:g}: {form(y)}") for (px, py), (x, y) in zip(placed, points, strict=True)
        )
        lines.append(
            Line(f"{name} {form(points[-1][1])}", style, " ".join(f"{x},{y}" for x, y in placed), marks, placed[-1])
        )
    lines = _separate_labels(lines)
    last = max(xs)
    words = "; ".join(f"{name} from {form(points[0][1])} to {form(points[-1][1])}" for name, _, points in series)
    epochs = [tick for tick in nice_ticks(x0, x1) if tick == round(tick) and x0 <= tick <= x1]
    return Chart(
        title, WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM,
        tuple((place(x, y0)[0], f"{x:g}") for x in epochs),
        tuple((place(x0, y)[1], form(y) if title != "Loss" else f"{y:g}") for y in ticks),
        tuple(lines), f"{title} by epoch up to {last:g}: {words}.",
    )  # fmt: skip


def _separate_labels(lines: list[Line]) -> list[Line]:
    """Move the end labels of two lines apart if they would overlap."""
    if len(lines) == 2 and abs(lines[0].end[1] - lines[1].end[1]) < 14:
        upper, lower = sorted(lines, key=lambda line: line.end[1])
        middle = (upper.end[1] + lower.end[1]) / 2
        moved = {upper.name: (upper.end[0], middle - 7), lower.name: (lower.end[0], middle + 7)}
        return [Line(line.name, line.style, line.points, line.marks, moved[line.name]) for line in lines]
    return lines


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], in steps of 1, 2 or 5 times a power of ten."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        return [low]
    return [round(float(tick), 10) for tick in MaxNLocator(about, steps=[1, 2, 5, 10]).tick_values(low, high)]


@dataclass(frozen=True)
class Bar:
    """One bin of the reliability diagram, in SVG units of a square with side 200."""

    x: float
    width: float
    accuracy: float
    confidence: float
    weight: float
    text: str


def reliability_bars(bins: Sequence[dict[str, Any]], side: int = 200) -> list[Bar]:
    """The nonempty bins of the reliability diagram; ``weight`` is the bin's size divided by the largest bin's."""
    most = max((row["n"] for row in bins), default=0)
    return [
        Bar(
            row["low"] * side, (row["high"] - row["low"]) * side, row["accuracy"] * side, row["confidence"] * side,
            row["n"] / most,
            f"confidence {row['low']:.0%} to {row['high']:.0%}: {row['n']:,} images, mean confidence "
            f"{row['confidence']:.1%}, accuracy {row['accuracy']:.1%}",
        )
        for row in bins
        if row["n"] and row.get("accuracy") is not None and row.get("confidence") is not None
    ]  # fmt: skip
