"""One image's explanation as a matplotlib figure, fit to be printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from whycam.errors import WhycamError, missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from whycam.cam.explanation import Explanation

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_PANEL_INCHES = 2.1
_STRONGEST = 0.8  # of the picture, what the strongest evidence still lets through is a fifth
_VECTOR_CELLS = 32 * 32  # beyond these a grid is drawn as pixels: a page of rectangles is slow to open
SIGNED = "RdBu_r"


def plot_explanation(
    explanation: Explanation, index: int = 0, *, colormap: str = "viridis", signed: bool = False
) -> Figure:
    """Rows are (method, target), columns the layers, after the image itself.

    Maps are drawn cell by cell on their native grid, as vector graphics in PDF and SVG; nothing is interpolated. The
    panels of one method and layer share their scale across targets, so that "predicted" and "true" can be compared;
    a colour bar in raw units stands beside each. Opacity grows with the evidence, cells that are not finite are grey.

    Args:
        explanation: of one or more images.
        index: which image of the batch.
        colormap: a perceptually uniform matplotlib colour map, for positive evidence.
        signed: show evidence against the target too, in a diverging colour map.

    Raises:
        WhycamError: there is no such image, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "study", "a figure") from error

    images = len(explanation.logits)
    if not -images <= index < images:
        raise WhycamError(f"image {index} does not exist; this explanation has {images}")
    rows = [(method, target) for method in explanation.methods for target in explanation.targets]
    columns = 1 + len(explanation.layers)
    size = (_PANEL_INCHES * columns + 0.5 * (columns - 1), (_PANEL_INCHES + 0.45) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    picture = _displayable(explanation, index)
    flags = explanation.flags
    for row, (method, target) in enumerate(rows):
        axes[row][0].imshow(picture, interpolation="nearest")
        axes[row][0].set_title(f"{target}: {float(explanation.scores[target][index]):.3g}", fontsize=8)
        axes[row][0].set_ylabel(method, fontsize=8)
        for column, layer in enumerate(explanation.layers, start=1):
            panel = axes[row][column]
            raw = explanation.map(method, layer, target)[index].float().cpu().numpy()
            top = _shared_top(explanation, method, layer, index, signed=signed)
            panel.imshow(picture, interpolation="nearest")
            _draw_cells(panel, raw, picture.shape[:2], top, SIGNED if signed else colormap, signed=signed)
            said = ", ".join(flags[method, layer, target][index])
            grid = f"{raw.shape[0]}×{raw.shape[1]}"
            panel.set_title(f"{layer} ({grid}, full = {top:.2g})" + (f"\n{said}" if said else ""), fontsize=8)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def _shared_top(explanation: Explanation, method: str, layer: str, index: int, *, signed: bool) -> float:
    """What full colour stands for: the largest value over all targets."""
    values = [
        explanation.map(method, layer, target)[index].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        for target in explanation.targets
    ]
    return max(float((value.abs() if signed else value).max()) for value in values)


def _draw_cells(panel: Axes, raw: Array, shape: tuple[int, ...], top: float, colormap: str, *, signed: bool) -> None:
    """Lay a map's cells over the picture, with a colour bar in raw units."""
    from matplotlib import colormaps

    height, width = shape
    scale = top if top > 0 else 1.0
    finite = np.isfinite(raw)
    shown = np.ma.masked_where(~finite, raw if signed else raw.clip(min=0))
    strength = np.clip(np.abs(shown.filled(0.0)) / scale, 0, 1)
    colours = colormaps[colormap].with_extremes(bad="0.5")
    edges_x = np.linspace(-0.5, width - 0.5, raw.shape[1] + 1)
    edges_y = np.linspace(-0.5, height - 0.5, raw.shape[0] + 1)
    look: dict[str, Any] = {"alpha": np.where(finite, _STRONGEST * strength, _STRONGEST)}
    if raw.size <= _VECTOR_CELLS:
        look |= {"edgecolors": (1, 1, 1, 0.3), "linewidth": 0.25}
    else:
        look["rasterized"] = True
    mesh = panel.pcolormesh(edges_x, edges_y, shown, cmap=colours, vmin=-scale if signed else 0, vmax=scale, **look)
    figure = panel.get_figure()
    assert figure is not None
    bar = figure.colorbar(mesh, ax=panel, fraction=0.046, pad=0.03, ticks=[-scale, 0, scale] if signed else [0, scale])
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in bar.get_ticks()])
    bar.outline.set_linewidth(0.4)


def _displayable(explanation: Explanation, index: int) -> Array:
    """The normalised input stretched to [0, 1] for display; the normalisation itself is not known here."""
    image = explanation.inputs[index].float().cpu()
    low, high = image.amin(), image.amax()
    image = (image - low) / (high - low).clamp(min=1e-12)
    array: Array = image.permute(1, 2, 0).expand(-1, -1, 3 if image.shape[0] == 1 else -1)[..., :3].numpy()
    return array
