"""Figures for a paper or a README: the errors, one gallery per layer and method, and the confusion matrix."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whycam.cam.methods.registry import method_note
from whycam.errors import missing_extra
from whycam.files import replacing, writing
from whycam.report.color import lookup_table
from whycam.report.encoding import Combination, Floats
from whycam.report.payload import Payload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
GALLERY = 20
LAYER_ROWS = 6
PALETTE = "viridis"
INK, SOFT, LINE = "#1b1d22", "#575b63", "#dedad1"


def write_figures(payload: Payload, folder: Path) -> list[Path]:
    """Draw a study's figures as PNG.

    ``misclassified.png`` shows the most confident errors with "Prediction / Actual"; ``<method>-<layer path>.png``
    shows for the first of them the image, the evidence for the predicted and for the true class, on one scale;
    ``confusion.png`` is the confusion matrix. A study without errors gets the last one only.

    Args:
        payload: the study to show.
        folder: where to write; it is made if it does not exist.

    Returns:
        The files written.

    Raises:
        WhycamError: the folder cannot be written to.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", "study", "drawing figures") from error
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    figures: list[tuple[str, Figure]] = [("confusion", draw_confusion(payload))]
    if payload.ids:
        figures.append(("misclassified", draw_errors(payload)))
    for method in payload.methods if payload.ids else ():
        for layer in payload.layers:
            name = f"{_file_name(method)}-{_file_name(str(layer['path']))}"
            figures.append((name, draw_layer(payload, method, layer)))
    written = []
    for name, figure in figures:
        path = folder / f"{name}.png"
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI)
        written.append(path)
    return written


def draw_errors(payload: Payload, count: int = GALLERY, columns: int = 5) -> Figure:
    """Draw the most confident errors with their predicted and actual classes."""
    count = min(count, len(payload.ids))
    rows = -(-count // columns)
    figure = _figure(1.72 * columns + 0.3, 2.06 * rows + 0.75)
    axes = _grid(figure, rows, columns, top=0.62, bottom=0.1, left=0.15, right=0.15, gap=(0.14, 0.46))
    _title(
        figure,
        f"{len(payload.ids):,} of {payload.metrics['n']:,} misclassified",
        f"the {count} most confident" if count < len(payload.ids) else "all of them",
    )
    for number, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if number < count:
            _picture(ax, payload, number)
            _names(ax, payload, number)
    return figure


def draw_layer(payload: Payload, method: str, layer: dict[str, Any], count: int = 2 * LAYER_ROWS) -> Figure:
    """Draw the most confident errors at one layer: the image, the map of the predicted and that of the true class.

    Maps show positive evidence in the native grid. All maps of the figure share one scale, shown by the color bar.
    """
    import matplotlib.cm
    import matplotlib.colors

    maps = {c.target: c for c in payload.maps.combinations if c.method == method and c.layer == layer["name"]}
    explained = [i for i in range(len(payload.ids)) if maps["predicted"].rows[i] >= 0][:count]
    pairs = 2 if len(explained) > LAYER_ROWS else 1
    rows = max(1, -(-len(explained) // pairs))
    figure = _figure(4.85 * pairs + 0.55, 1.8 * rows + 0.8)
    axes = _grid(
        figure, rows, 3 * pairs, top=0.6, bottom=0.12, left=0.15, right=0.95, gap=(0.1, 0.3),
        breaks=0.35 if pairs == 2 else 0.0,
    )  # fmt: skip
    values = {target: payload.maps.raw(c, np.asarray(explained, np.int64)) for target, c in maps.items()}
    scale = _scale(list(values.values()))
    title = method_note(method)["title"]
    _title(
        figure,
        f"{title} at {layer['name']}",
        f"native {layer['height']} × {layer['width']} cells, positive evidence, one scale: 0 to {scale:.3g}; "
        "1% of the cells lie above it",
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for place, number in enumerate(explained):
        row, start = place % rows, 3 * (place // rows)
        _picture(axes[row, start], payload, number)
        for offset, target in ((1, "predicted"), (2, "true")):
            ax = axes[row, start + offset]
            _picture(ax, payload, number)
            _evidence(ax, values[target][place], maps[target], scale, present=maps[target].rows[number] >= 0)
        for ax, words in (
            (axes[row, start + 1], f"Prediction: {_class(payload, payload.predicted[number])}"),
            (axes[row, start + 2], f"Actual: {_class(payload, payload.label[number])}"),
        ):
            ax.set_title(words, fontsize=7.5, color=INK, pad=3, parse_math=False)
    norm = matplotlib.colors.Normalize(0, scale or 1.0)
    bar = figure.add_axes((1 - 0.72 / figure.get_figwidth(), 0.18, 0.13 / figure.get_figwidth(), 0.58))
    colors = figure.colorbar(matplotlib.cm.ScalarMappable(norm, PALETTE), cax=bar)
    colors.outline.set_visible(False)
    bar.tick_params(labelsize=7, colors=SOFT, length=2)
    return figure


def draw_confusion(payload: Payload) -> Figure:
    """Draw the confusion matrix: rows actual, columns predicted; color is the share of the actual class."""
    counts = np.asarray(payload.metrics["confusion"], dtype=np.int64)
    k = len(counts)
    side = float(np.clip(0.52 * k, 3.6, 14))
    figure = _figure(side + 1.7, side + 1.95)
    width, height = figure.get_size_inches()
    ax = figure.add_axes((1.4 / width, 0.2 / height, side / width, side / height))
    wrong = counts.astype(np.float64)
    np.fill_diagonal(wrong, 0)
    share = wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=max(float(share.max()), 1e-9) * 1.15, interpolation="nearest")
    small = 8 if k <= 20 else max(2.0, 8 * 20 / k)
    labels = [printable(name, 18) for name in payload.classes]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(k), labels=labels, fontsize=small, parse_math=False)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, colors=INK)
    for label in ax.get_xticklabels():
        label.set(rotation=45, ha="left", rotation_mode="anchor")
    ax.spines[:].set_visible(False)
    if k <= 25:
        ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="minor", length=0)
        for i, j in np.argwhere(counts):
            dark = share[i, j] > 0.6 * share.max() and i != j
            ax.text(
                j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=7.5,
                color="white" if dark else SOFT if i == j else INK, fontweight="bold" if i != j and dark else "normal",
            )  # fmt: skip
    metrics = payload.metrics
    low, high = metrics["accuracy_interval"]
    _title(
        figure,
        f"Accuracy {metrics['accuracy']:.2%}",
        f"95% interval {low:.2%} to {high:.2%}, n = {metrics['n']:,}; rows actual, columns predicted, "
        "color: share of the row",
    )
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    left = 0.15 / width
    figure.text(left, 1 - 0.3 / height, title, fontsize=12, fontweight="bold", color=INK, parse_math=False)
    figure.text(left, 1 - 0.5 / height, subtitle, fontsize=8, color=SOFT, parse_math=False)


def _grid(
    figure: Figure, rows: int, columns: int, *, top: float, bottom: float, left: float, right: float,
    gap: tuple[float, float], breaks: float = 0.0,
) -> npt.NDArray[Any]:  # fmt: skip
    """Axes in inches: equal squares, with an extra gap (``breaks``) in the middle of each row."""
    width, height = figure.get_size_inches()
    cell_w = (width - left - right - gap[0] * (columns - 1) - breaks) / columns
    cell_h = (height - top - bottom - gap[1] * rows) / rows
    axes = np.empty((rows, columns), object)
    for i in range(rows):
        for j in range(columns):
            x = left + j * (cell_w + gap[0]) + (breaks if j >= columns / 2 else 0.0)
            y = height - top - (i + 1) * (cell_h + gap[1])
            axes[i, j] = figure.add_axes((x / width, y / height, cell_w / width, cell_h / height))
    return axes


def _picture(ax: Axes, payload: Payload, number: int) -> None:
    from PIL import Image

    png = payload.study.images.get(payload.ids[number])
    height, width = payload.manifest["model"]["preprocess"]["size"]
    pixels = np.full((height, width, 3), 238, np.uint8)
    if png is not None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    ax.imshow(pixels, interpolation="nearest", extent=(0, 1, 1, 0), aspect=pixels.shape[0] / pixels.shape[1])


def _names(ax: Axes, payload: Payload, number: int) -> None:
    for points, words in (
        (14.5, f"Prediction: {_class(payload, payload.predicted[number])}"),
        (4.0, f"Actual: {_class(payload, payload.label[number])}"),
    ):
        ax.annotate(
            words, (0, 1), xytext=(0, points), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color=INK, parse_math=False, annotation_clip=False,
        )  # fmt: skip


def _evidence(ax: Axes, raw: Floats, c: Combination, scale: float, *, present: bool) -> None:
    """Draw native cells, colored by value; stronger cells are more opaque. Maps that cannot be shown get a label."""
    values = raw.reshape(c.height, c.width)
    finite = np.isfinite(values)
    strength = np.where(finite, values, 0).clip(0, None) / scale if scale > 0 else np.zeros_like(values)
    strength = strength.clip(0, 1)
    opacity = np.rint(70 + strength * 150)
    rgba = np.dstack([lookup_table(PALETTE)[np.rint(strength * 255).astype(int)], opacity])
    rgba[~finite] = (128, 128, 128, 217)
    ax.imshow(rgba.astype(np.uint8), interpolation="nearest", extent=(0, 1, 1, 0), aspect=ax.get_aspect())
    words = (
        "no map" if not present else "not finite" if not finite.all() else "no positive evidence"
        if not (values > 0).any() else None
    )  # fmt: skip
    if words:
        ax.text(
            0.5, 0.93, words, ha="center", va="center", fontsize=6.5, color="white",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "#0c0e10", "alpha": 0.85, "linewidth": 0},
        )  # fmt: skip


def _scale(maps: Sequence[Floats]) -> float:
    """The 99% quantile of the cells, so that one strong cell does not darken all others; 0 without evidence."""
    cells = np.concatenate([raw.ravel() for raw in maps])
    cells = cells[np.isfinite(cells)]
    if not (cells > 0).any():
        return 0.0
    return float(np.quantile(cells, 0.99)) if np.quantile(cells, 0.99) > 0 else float(cells.max())


def _class(payload: Payload, index: int) -> str:
    return printable(payload.classes[index], 16)


def printable(text: str, length: int) -> str:
    """Text that a figure can draw: without control and bidi characters and missing glyphs, and cut to ``length``."""
    known = _glyphs()
    kept = (c for c in text if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Mn", "Zl", "Zp"})
    drawn = "".join(c if ord(c) in known else "\N{REPLACEMENT CHARACTER}" for c in kept)
    return drawn if len(drawn) <= length else drawn[: length - 1] + "…"


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(font_manager.findfont(font_manager.FontProperties())).get_charmap())


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
