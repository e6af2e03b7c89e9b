"""One image's explanation as a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whycam.cam.maps import resize
from whycam.errors import WhycamError, missing_extra

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from whycam.cam.explanation import Explanation

_PANEL_INCHES = 2.1


def plot_explanation(explanation: Explanation, index: int = 0, *, colormap: str = "viridis") -> Figure:
    """Rows are (method, target), columns the layers, after the image itself.

    Each row of one method and layer shares its scale across targets, so that "predicted" and "true" can be compared;
    the panel's title gives what full brightness stands for. Maps are drawn on their native grid.

    Args:
        explanation: of one or more images.
        index: which image of the batch.
        colormap: a perceptually uniform matplotlib colour map.

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
    height, width = explanation.inputs.shape[-2:]
    rows = [(method, target) for method in explanation.methods for target in explanation.targets]
    columns = 1 + len(explanation.layers)
    figure = Figure(figsize=(_PANEL_INCHES * columns, (_PANEL_INCHES + 0.45) * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    picture = _displayable(explanation, index)
    flags = explanation.flags
    for row, (method, target) in enumerate(rows):
        axes[row][0].imshow(picture, interpolation="nearest")
        axes[row][0].set_title(f"{target}: {float(explanation.scores[target][index]):.3g}", fontsize=8)
        axes[row][0].set_ylabel(method, fontsize=8)
        for column, layer in enumerate(explanation.layers, start=1):
            raw = explanation.map(method, layer, target)[index].cpu()
            top = max(
                float(explanation.map(method, layer, other)[index].nan_to_num().max()) for other in explanation.targets
            )
            panel = axes[row][column]
            positive = raw.nan_to_num().relu()
            panel.imshow(picture, interpolation="nearest")
            overlay = resize(positive[None], (height, width), "nearest")[0].numpy()
            panel.imshow(
                overlay, cmap=colormap, vmin=0, vmax=top if top > 0 else 1, alpha=0.65, interpolation="nearest"
            )
            said = ", ".join(flags[method, layer, target][index])
            grid = f"{raw.shape[0]}×{raw.shape[1]}"
            panel.set_title(f"{layer} ({grid}, full = {top:.2g})" + (f"\n{said}" if said else ""), fontsize=8)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def _displayable(explanation: Explanation, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The normalised input stretched to [0, 1] for display; the normalisation itself is not known here."""
    image = explanation.inputs[index].float().cpu()
    low, high = image.amin(), image.amax()
    image = (image - low) / (high - low).clamp(min=1e-12)
    return image.permute(1, 2, 0).expand(-1, -1, 3 if image.shape[0] == 1 else -1)[..., :3].numpy()
