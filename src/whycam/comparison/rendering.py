"""A comparison of methods to look at: a table for the terminal and for Markdown, and a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whycam.cam.methods.registry import method_note
from whycam.cam.passes.trace import INPUT
from whycam.comparison.context import CONTROLS, Key
from whycam.comparison.measures import Measure
from whycam.comparison.ranking import FEWEST, Comparison, Ranking
from whycam.errors import missing_extra
from whycam.files import replacing, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
NAMED = 6  # in a sentence
IN_A_ROW = 7  # panels: more would be too wide for any page
INK, SOFT, LINE, GOOD, CONTROL = "#1b1d22", "#575b63", "#dedad1", "#2f6690", "#a8a296"
_ARROWS = {"higher": "↑", "lower": "↓"}

READING = (
    "* the best by this measure, or not told apart from it",
    "? not better than every control; convincing: by how many measures it is",
    "controls know nothing of the decision: random channel weights, the image's edges, its middle",
)
"""What the marks mean."""


def text_table(comparison: Comparison) -> str:
    """Rows of methods and layers, columns of measures, for a terminal: aligned by spaces."""
    head, *body = _cells(comparison)
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
        return "  ".join([left, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))]).rstrip()

    return "\n".join(map(line, (head, *body)))


def markdown_table(comparison: Comparison) -> str:
    """The same for Markdown."""
    head, *body = _cells(comparison)
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    escaped = [[cell.replace("*", r"\*").replace("|", r"\|") for cell in row] for row in body]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *escaped))


def markdown_page(comparison: Comparison, said: str) -> str:
    """The table under a sentence on what was compared, with what its marks and measures mean under it."""
    marks = "\n".join(f"- {line}".replace("- *", r"- \*") for line in READING)
    measures = "\n".join(
        f"- {measure.title}, {measure.better} is better: {measure.summary} ({measure.paper})"
        for measure in comparison.measures
    )
    notes = "".join(f"\n- {note}" for note in notes_on(comparison))
    return f"{said}\n\n{markdown_table(comparison)}\n\n{verdict(comparison)}\n\n{marks}{notes}\n\n{measures}\n"


def verdict(comparison: Comparison) -> str:
    """What the whole table comes down to, in a sentence."""
    counts = {key: comparison.support(key) for key in row_order(comparison) if key[0] not in CONTROLS}
    most, total = max(counts.values(), default=0), len(comparison.measures)
    if not most:
        return "No map is better than every control by any of these measures: take more images, or believe none."
    names = [f"{method} {layer}" if layer != INPUT else method for (method, layer), n in counts.items() if n == most]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    by = f"all {total} measures" if most == total else f"{most} of {total} measures, none by more"
    return f"Better than every control by {by}: {shown}."


def notes_on(comparison: Comparison) -> list[str]:
    """What was left out, and which maps say nothing, a sentence each."""
    few = (
        [f"with fewer than {FEWEST} images nothing can be told apart: take more"] if comparison.images < FEWEST else []
    )
    left_out = [f"{measure} is left out: {why}" for measure, why in comparison.left_out.items()]
    broken = [
        f"{count} maps of {method} at {layer} are not finite, and count as no evidence"
        for (method, layer), count in comparison.broken.items()
        if count
    ]
    blank = [
        f"{count} maps of {method} at {layer} are the same everywhere: take a layer that the answer depends on"
        for (method, layer), count in comparison.blank.items()
        if count
    ]
    return few + left_out + broken + blank


def _cells(comparison: Comparison) -> list[list[str]]:
    measures, keys = comparison.measures, row_order(comparison)
    found = {measure.name: by_key(comparison, measure) for measure in measures}
    heads = (f"{measure.title} {_ARROWS[measure.better]}" for measure in measures)
    rows = [["method", "layer", *heads, "convincing"]]
    for method, layer in keys:
        control = method in CONTROLS
        cells = [_cell(found[measure.name][method, layer]) for measure in measures]
        support = "" if control else f"{comparison.support((method, layer))} of {len(measures)}"
        rows.append([f"control: {method}" if control else method, "" if layer == INPUT else layer, *cells, support])
    return rows


def _cell(ranking: Ranking) -> str:
    mark = "" if ranking.control else "*" if ranking.best else " "
    doubt = "?" if ranking.convincing is False else " "
    return f"{ranking.mean:.3f}{mark}{doubt}" if ranking.n else f"–{mark}{doubt}"


def row_order(comparison: Comparison) -> list[Key]:
    """By how many measures convince, then by the first measure, the best first; controls behind."""
    ranked = [(ranking.method, ranking.layer) for ranking in comparison.rankings(comparison.measures[0].name)]
    return sorted(ranked, key=lambda key: (key[0] in CONTROLS, -comparison.support(key)))


def by_key(comparison: Comparison, measure: Measure) -> dict[Key, Ranking]:
    """One measure's rankings by method and layer."""
    return {(ranking.method, ranking.layer): ranking for ranking in comparison.rankings(measure.name)}


def write_comparison(comparison: Comparison, folder: Path, said: str) -> tuple[Path, Path]:
    """Write `draw_comparison` as ``comparison.png`` and `markdown_page` as ``comparison.md``, each whole or not at all.

    Args:
        comparison: what to show.
        folder: where to write.
        said: on what was compared, see `markdown_page`.

    Returns:
        Both paths.

    Raises:
        WhycamError: matplotlib is missing or a file cannot be written.
    """
    figure, page = folder / "comparison.png", folder / "comparison.md"
    drawn = draw_comparison(comparison)
    with replacing(figure) as partial:
        drawn.savefig(partial, format="png", dpi=DPI)
    write_bytes(page, markdown_page(comparison, said).encode())
    return figure, page


def draw_comparison(comparison: Comparison) -> Figure:
    """A panel for each measure: the mean of every map with its 95% interval.

    Filled: better than every control; hollow: not; gray diamonds: the controls; a band marks the best control's
    interval.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "study", "drawing figures") from error
    keys, measures = row_order(comparison), comparison.measures
    labels = [_label(key) for key in keys]
    rows = math.ceil(len(measures) / IN_A_ROW)
    columns = math.ceil(len(measures) / rows)
    width = 0.3 + 0.077 * max(30, *map(len, labels)) + 1.75 * columns  # inches; 0.077 is a wide letter of these labels
    figure = Figure(figsize=(width, 0.75 + rows * (0.6 + 0.27 * len(keys))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for ax, measure in zip(axes.flat, measures, strict=False):
        _panel(ax, by_key(comparison, measure), keys, measure)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0, labelsize=8)
    axes[0, 0].set_yticks(range(len(keys)), labels)
    axes[0, 0].set_ylim(len(keys) - 0.4, -0.6)
    said = (
        f"Methods compared on {comparison.images} images: mean and 95% interval. Band: the best control. "
        "Filled: better than every control"
    )
    wrapped = textwrap.fill(said, int(width / 0.085))  # inches, a wide letter of this line
    figure.suptitle(wrapped, fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def _panel(ax: Axes, rankings: dict[Key, Ranking], keys: Sequence[Key], measure: Measure) -> None:
    best: Callable[..., Ranking] = max if measure.better == "higher" else min
    rivals = [ranking for ranking in rankings.values() if ranking.method in measure.controls]
    defined = [ranking for ranking in rivals if ranking.n]
    if defined:
        top = best(defined, key=lambda ranking: ranking.mean)
        low, high = top.interval or (top.mean, top.mean)
        # With an edge, so that an interval without width, as of what always scores 1, is seen.
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
    ax.set_title(f"{measure.title}, {measure.better} is better", loc="left", fontsize=8, color=INK)
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
