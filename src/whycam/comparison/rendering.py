"""Show a comparison: a table for the terminal, a Markdown page and a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whycam.cam.methods.registry import method_note
from whycam.cam.passes.trace import INPUT
from whycam.comparison.context import CONTROLS, Key
from whycam.comparison.ranking import FEWEST, Comparison, Ranking
from whycam.comparison.registry import Metric
from whycam.errors import missing_extra
from whycam.files import replacing, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
NAMED = 6  # maps that the verdict names
PANELS_PER_ROW = 7  # more would be too wide for a page
INK, SOFT, LINE, GOOD, CONTROL = "#1b1d22", "#575b63", "#dedad1", "#2f6690", "#a8a296"
_ARROWS = {"higher": "↑", "lower": "↓"}

READING = (
    "*: the best by this metric, or not significantly different from the best",
    "?: not significantly better than every control",
    "convincing: the number of metrics by which the map is better than every control",
    "controls ignore the decision: random channel weights, the image's edges, a Gaussian at the image center",
)
"""The meaning of the marks."""


def text_table(comparison: Comparison) -> str:
    """The table for a terminal, aligned by spaces: a row for each method and layer, a column for each metric."""
    head, *body = _cells(comparison)
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
        return "  ".join([left, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))]).rstrip()

    return "\n".join(map(line, (head, *body)))


def markdown_table(comparison: Comparison) -> str:
    """The same table in Markdown."""
    head, *body = _cells(comparison)
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    escaped = [[cell.replace("*", r"\*").replace("|", r"\|") for cell in row] for row in body]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *escaped))


def markdown_page(comparison: Comparison, title: str) -> str:
    """The sentence ``title``, the table, the verdict, and the meaning of marks and metrics."""
    marks = "\n".join(f"- {line}".replace("- *", r"- \*") for line in READING)
    metrics = "\n".join(
        f"- {metric.title}, {metric.better} is better: {metric.summary} ({metric.paper})"
        for metric in comparison.metrics
    )
    notes = "".join(f"\n- {note}" for note in notes_on(comparison))
    return f"{title}\n\n{markdown_table(comparison)}\n\n{verdict(comparison)}\n\n{marks}{notes}\n\n{metrics}\n"


def verdict(comparison: Comparison) -> str:
    """The result of the whole table in one sentence."""
    counts = {key: comparison.n_significant(key) for key in row_order(comparison) if key[0] not in CONTROLS}
    most, total = max(counts.values(), default=0), len(comparison.metrics)
    if not most:
        return (
            "No map is better than every control by any of these metrics: use more images, or trust none of the maps."
        )
    names = [f"{method} {layer}" if layer != INPUT else method for (method, layer), n in counts.items() if n == most]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    by = f"all {total} metrics" if most == total else f"{most} of {total} metrics, the most of all maps"
    return f"Better than every control by {by}: {shown}."


def notes_on(comparison: Comparison) -> list[str]:
    """A sentence for each metric that was left out, and for each method with broken or constant maps."""
    few = (
        [f"with fewer than {FEWEST} images no difference can be significant: use more"]
        if comparison.images < FEWEST
        else []
    )
    left_out = [f"{metric} is left out: {why}" for metric, why in comparison.left_out.items()]
    broken = [
        f"{count} maps of {method} at {layer} are not finite and count as maps without evidence"
        for (method, layer), count in comparison.broken.items()
        if count
    ]
    blank = [
        f"{count} maps of {method} at {layer} are constant: use a layer that the output depends on"
        for (method, layer), count in comparison.blank.items()
        if count
    ]
    return few + left_out + broken + blank


def _cells(comparison: Comparison) -> list[list[str]]:
    metrics, keys = comparison.metrics, row_order(comparison)
    found = {metric.name: by_key(comparison, metric) for metric in metrics}
    heads = (f"{metric.title} {_ARROWS[metric.better]}" for metric in metrics)
    rows = [["method", "layer", *heads, "convincing"]]
    for method, layer in keys:
        control = method in CONTROLS
        cells = [_cell(found[metric.name][method, layer]) for metric in metrics]
        convincing = "" if control else f"{comparison.n_significant((method, layer))} of {len(metrics)}"
        rows.append([f"control: {method}" if control else method, "" if layer == INPUT else layer, *cells, convincing])
    return rows


def _cell(ranking: Ranking) -> str:
    mark = "" if ranking.control else "*" if ranking.best else " "
    doubt = "?" if ranking.convincing is False else " "
    return f"{ranking.mean:.3f}{mark}{doubt}" if ranking.n else f"–{mark}{doubt}"


def row_order(comparison: Comparison) -> list[Key]:
    """By the number of convincing metrics, then by rank in the first metric; controls last."""
    ranked = [(ranking.method, ranking.layer) for ranking in comparison.rankings(comparison.metrics[0].name)]
    return sorted(ranked, key=lambda key: (key[0] in CONTROLS, -comparison.n_significant(key)))


def by_key(comparison: Comparison, metric: Metric) -> dict[Key, Ranking]:
    """One metric's rankings by method and layer."""
    return {(ranking.method, ranking.layer): ranking for ranking in comparison.rankings(metric.name)}


def write_comparison(comparison: Comparison, folder: Path, title: str) -> tuple[Path, Path]:
    """Write `draw_comparison` to ``comparison.png`` and `markdown_page` to ``comparison.md``, each atomically.

    Args:
        comparison: the result to show.
        folder: the folder to write to.
        title: a sentence that says what was compared.

    Returns:
        Both paths.

    Raises:
        WhycamError: matplotlib is missing or a file cannot be written.
    """
    figure, page = folder / "comparison.png", folder / "comparison.md"
    drawn = draw_comparison(comparison)
    with replacing(figure) as partial:
        drawn.savefig(partial, format="png", dpi=DPI)
    write_bytes(page, markdown_page(comparison, title).encode())
    return figure, page


def draw_comparison(comparison: Comparison) -> Figure:
    """A panel for each metric: the mean of every map with its 95% interval.

    Filled points are better than every control, hollow points are not. Gray diamonds are the controls. The band is the
    interval of the best control.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "study", "drawing figures") from error
    keys, metrics = row_order(comparison), comparison.metrics
    labels = [_label(key) for key in keys]
    rows = math.ceil(len(metrics) / PANELS_PER_ROW)
    columns = math.ceil(len(metrics) / rows)
    width = 0.3 + 0.077 * max(30, *map(len, labels)) + 1.75 * columns  # inches; 0.077 for a wide letter of the labels
    figure = Figure(figsize=(width, 0.75 + rows * (0.6 + 0.27 * len(keys))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        _panel(ax, by_key(comparison, metric), keys, metric)
    for ax in axes.flat[len(metrics) :]:
        ax.set_axis_off()
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0, labelsize=8)
    axes[0, 0].set_yticks(range(len(keys)), labels)
    axes[0, 0].set_ylim(len(keys) - 0.4, -0.6)
    title = (
        f"Methods compared on {comparison.images} images: mean and 95% interval. Band: the best control. "
        "Filled: better than every control"
    )
    wrapped = textwrap.fill(title, int(width / 0.085))  # inches; 0.085 for a wide letter of the title
    figure.suptitle(wrapped, fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def _panel(ax: Axes, rankings: dict[Key, Ranking], keys: Sequence[Key], metric: Metric) -> None:
    best: Callable[..., Ranking] = max if metric.better == "higher" else min
    controls = [ranking for ranking in rankings.values() if ranking.method in metric.controls and ranking.n]
    if controls:
        top = best(controls, key=lambda ranking: ranking.mean)
        low, high = top.interval or (top.mean, top.mean)
        # The edge keeps an interval of width 0 visible, such as that of a control that always scores 1.
        ax.axvspan(low, high, facecolor=LINE, edgecolor=LINE, alpha=0.6, linewidth=1.5)
    for place, key in enumerate(keys):
        ranking = rankings[key]
        color = CONTROL if ranking.control else GOOD
        if ranking.interval is not None:
            ax.plot(ranking.interval, (place, place), color=color, linewidth=1.6, solid_capstyle="butt")
        filled = ranking.convincing is not False
        ax.plot(
            ranking.mean, place, "D" if ranking.control else "o", markersize=4.5, color=color,
            markerfacecolor=color if filled else "white", markeredgewidth=1.3,
        )  # fmt: skip
    ax.set_title(f"{metric.title}, {metric.better} is better", loc="left", fontsize=8, color=INK)
    ax.grid(axis="x", color=LINE, linewidth=0.6)
    ax.tick_params(colors=SOFT, labelsize=7, length=2)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(LINE)


def _label(key: Key) -> str:
    method, layer = key
    title = method_note(method)["title"] if "(" not in method else method
    if method in CONTROLS:
        title = f"control: {title.lower()}"
    return title if layer == INPUT else f"{title}  {layer}"
