"""The legend beside a factorization; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam._scaling import resized
from whycam.errors import missing_extra


def legend(colors: Sequence[Array], labels: Sequence[str], height: int, width: int) -> Array:
    """(height, width, 3) uint8: a line and a text per concept.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise missing_extra("matplotlib", "study", "the legend") from error
    dpi = 100
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    lines = [Line2D([0], [0], color=tuple(color[:3]), lw=5 * height / 256) for color in colors]
    size = max(int(14 * height / 256 / max(1, len(colors) / 6)), 1)
    figure.legend(lines, list(labels), fontsize=size, mode="expand", fancybox=True, shadow=True, loc="upper left")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    channels = torch.from_numpy(np.ascontiguousarray(drawn.transpose(2, 0, 1))).float()
    fitted = resized(channels, (height, width)).round().clamp(0, 255)
    return fitted.to(torch.uint8).permute(1, 2, 0).numpy()
