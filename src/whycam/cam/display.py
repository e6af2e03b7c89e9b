"""Show an explanation: a matplotlib figure for print, and HTML with a description for notebooks."""

from __future__ import annotations

import io
import itertools
from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whycam.errors import WhycamError, missing_extra, near_misses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from whycam.cam.maps import Flag, Key

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_PANEL_INCHES = 2.1
_TITLE_CHARACTERS = 36
_MAX_OPACITY = 0.8  # a fifth of the image stays visible under the strongest evidence
_MAX_VECTOR_CELLS = 32 * 32  # a larger grid is drawn as pixels, because thousands of rectangles are slow to open
SIGNED = "RdBu_r"


class Displayable(Protocol):
    """The part of `whycam.Explanation` that this module reads."""

    @property
    def maps(self) -> Mapping[Key, Tensor]:
        """(method, layer, target) → (B, h, w)."""

    @property
    def logits(self) -> Tensor:
        """(B, K)."""

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Target → (B,)."""

    @property
    def inputs(self) -> Tensor:
        """(B, C, H, W)."""

    @property
    def flags(self) -> Mapping[Key, list[tuple[Flag, ...]]]:
        """(method, layer, target) → the flags of each image's map."""

    @property
    def predicted(self) -> Tensor:
        """(B,) class indices."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets."""


def plot_explanation(
    explanation: Displayable, index: int = 0, *, colormap: str = "viridis", signed: bool = False
) -> Figure:
    """Draw the maps of one image, with a row for each method and target: the image, then one panel per map.

    Maps are drawn cell by cell on their native grid, as vector graphics in PDF and SVG; nothing is interpolated. The
    panels of one method and layer share their scale across targets, so that "predicted" and "true" can be compared.
    Each panel has a color bar in raw units. Opacity grows with the evidence; cells that are not finite are gray.

    Args:
        explanation: of one or more images; series and volumes cannot be drawn.
        index: of the image in the batch.
        colormap: the name of a perceptually uniform matplotlib color map, for positive evidence.
        signed: show evidence against the target too, in a diverging color map.

    Raises:
        WhycamError: there is no such image or color map, the inputs are not images, or matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "study", "a figure") from error

    images = len(explanation.logits)
    if not -images <= index < images:
        raise WhycamError(f"image {index} does not exist; this explanation has {images}")
    if colormap not in (known := list(colormaps)):
        similar = near_misses(str(colormap), known)
        raise WhycamError(f"matplotlib has no color map {colormap!r}{similar}; matplotlib.colormaps lists them")
    picture = _displayable(explanation, index)
    rows = _rows(explanation)
    columns = 1 + max(len(keys) for keys in rows.values())
    size = (_PANEL_INCHES * columns + 0.5 * (columns - 1), (_PANEL_INCHES + 0.45) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns)
    panels = [
        [figure.add_subplot(grid[row, column]) for column in range(1 + len(keys))]
        for row, keys in enumerate(rows.values())
    ]
    for panel in itertools.chain(*panels):
        panel.imshow(picture, interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
    flags = explanation.flags
    for ((method, target), keys), (first, *others) in zip(rows.items(), panels, strict=True):
        first.set_title(f"{target}: {float(explanation.scores[target][index].detach()):.3g}", fontsize=8)
        first.set_ylabel(method, fontsize=8)
        for key, panel in zip(keys, others, strict=True):
            raw = explanation.maps[key][index].detach().float().cpu().numpy()
            top = _shared_top(explanation, key, index, signed=signed)
            _draw_cells(panel, raw, picture.shape[:2], top, SIGNED if signed else colormap, signed=signed)
            title = _in_lines(key[1], f" ({raw.shape[0]}×{raw.shape[1]}, full = {top:.2g})")
            note = ", ".join(flags[key][index])
            panel.set_title(title + (f"\n{note}" if note else ""), fontsize=8)
    return figure


def _rows(explanation: Displayable) -> dict[tuple[str, str], list[Key]]:
    """(method, target) → the keys of its maps; not every method has a map of every layer."""
    rows: dict[tuple[str, str], list[Key]] = {
        (method, target): [] for method in explanation.methods for target in explanation.targets
    }
    for key in explanation.maps:
        rows[key[0], key[2]].append(key)
    return {row: keys for row, keys in rows.items() if keys}


def _in_lines(name: str, rest: str) -> str:
    """A title no wider than its panel, with line breaks between the names of several layers."""
    lines = [""]
    for part in [*name.replace("+", "+\n").split("\n"), rest]:
        if lines[-1] and len(lines[-1]) + len(part) > _TITLE_CHARACTERS:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "\n".join(lines)


def _shared_top(explanation: Displayable, key: Key, index: int, *, signed: bool) -> float:
    """The value that is drawn in full color: the largest one over all targets."""
    maps = [raw[index].detach() for other, raw in explanation.maps.items() if other[:2] == key[:2]]
    values = [raw.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for raw in maps]
    return max(float((value.abs() if signed else value).max()) for value in values)


def _draw_cells(panel: Axes, raw: Array, shape: tuple[int, ...], top: float, colormap: str, *, signed: bool) -> None:
    """Draw a map's cells over the image, with a color bar in raw units."""
    from matplotlib import colormaps

    height, width = shape
    scale = top if top > 0 else 1.0
    finite = np.isfinite(raw)
    shown = np.ma.masked_where(~finite, raw if signed else raw.clip(min=0))
    strength = np.clip(np.abs(shown.filled(0.0)) / scale, 0, 1)
    colors = colormaps[colormap].with_extremes(bad="0.5")
    edges_x = np.linspace(-0.5, width - 0.5, raw.shape[1] + 1)
    edges_y = np.linspace(-0.5, height - 0.5, raw.shape[0] + 1)
    style: dict[str, Any] = {"alpha": np.where(finite, _MAX_OPACITY * strength, _MAX_OPACITY)}
    if raw.size <= _MAX_VECTOR_CELLS:
        style |= {"edgecolors": (1, 1, 1, 0.3), "linewidth": 0.25}
    else:
        style["rasterized"] = True
    mesh = panel.pcolormesh(edges_x, edges_y, shown, cmap=colors, vmin=-scale if signed else 0, vmax=scale, **style)
    figure = panel.get_figure()
    assert figure is not None
    bar = figure.colorbar(mesh, ax=panel, fraction=0.046, pad=0.03, ticks=[-scale, 0, scale] if signed else [0, scale])
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in bar.get_ticks()])
    bar.outline.set_linewidth(0.4)


def _displayable(explanation: Displayable, index: int) -> Array:
    """One normalized input (C, H, W) as a picture (H, W, 3), scaled to [0, 1] because its normalization is not known.

    The first three channels are shown as red, green and blue; if there are fewer, their mean is shown in gray.
    """
    for what, shape, axes in [("inputs", explanation.inputs.shape, "(B, C, H, W)")] + [
        (f"maps of {layer}", raw.shape, "(B, h, w)") for (_, layer, _), raw in explanation.maps.items()
    ]:
        if len(shape) != len(axes.split(",")):
            raise WhycamError(
                f"only images are drawn, and the {what} are {tuple(shape)}, not {axes}: use the values of "
                "explanation.map(method, layer, target) instead"
            )
    image = explanation.inputs[index].float().cpu()
    image = image[:3] if len(image) >= 3 else image.mean(dim=0).expand(3, -1, -1)
    low, high = image.amin(), image.amax()
    array: Array = ((image - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    return array


_MAX_IMAGES = 3
_DPI = 110


def explanation_html(explanation: Displayable) -> str:
    """The figures of the first images, as inline PNG files with text alternatives, so the HTML loads nothing.

    If the explanation cannot be drawn (a series, for example), its `repr` and the reason are shown.
    """
    images = len(explanation.logits)
    try:
        figures = [_figure(explanation, index) for index in range(min(images, _MAX_IMAGES))]
    except WhycamError as error:
        return f"<pre>{escape(repr(explanation))}</pre><p>{escape(str(error))}</p>"
    rest = images - len(figures)
    more = f"<p>{rest} more image{'' if rest == 1 else 's'}: plot(index) draws any of the {images}.</p>" if rest else ""
    return f"<div>{''.join(figures)}{more}</div>"


def _figure(explanation: Displayable, index: int) -> str:
    buffer = io.BytesIO()
    plot_explanation(explanation, index).savefig(buffer, format="png", dpi=_DPI)
    source = b64encode(buffer.getvalue()).decode("ascii")
    description = escape(describe_maps(explanation, index), quote=True)
    caption = f"Image {index}: {_prediction(explanation, index)}. Native grids; color bars in raw units."
    return (
        f'<figure style="margin:0 0 1em"><img src="data:image/png;base64,{source}" alt="{description}" '
        f'style="max-width:100%;height:auto"><figcaption>{caption}</figcaption></figure>'
    )


def describe_maps(explanation: Displayable, index: int) -> str:
    """Describe one image's maps in words: grid, raw range, peak and flags of each."""
    flags = explanation.flags
    sentences = [f"Image {index}, {_prediction(explanation, index)}."]
    for key, maps in explanation.maps.items():
        method, layer, target = key
        raw = maps[index].detach()
        notes = "".join(f", {flag}" for flag in flags[key][index])
        sentences.append(
            f"{method} at {layer} for {target}: {raw.shape[0]} by {raw.shape[1]} cells, raw range "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}{_peak(raw)}{notes}."
        )
    return " ".join(sentences)


def _peak(raw: Tensor) -> str:
    finite = raw.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    position = int(finite.argmax())
    if not float(finite.flatten()[position]) > 0:
        return ""
    return f", peak at row {position // raw.shape[1] + 1}, column {position % raw.shape[1] + 1}"


def _prediction(explanation: Displayable, index: int) -> str:
    if explanation.logits.ndim != 2 or not explanation.logits.shape[1]:
        return "no class predicted"
    return f"class {int(explanation.predicted[index])} predicted"
