"""The palettes of figures and report: perceptually uniform ones for evidence, a diverging one for signed values."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

SEQUENTIAL = ("viridis", "cividis", "inferno")
DIVERGING = "RdBu_r"


@cache
def lookup_table(name: str) -> npt.NDArray[np.uint8]:
    """A palette as (256, 3) uint8 sRGB."""
    from matplotlib import colormaps

    table: npt.NDArray[np.uint8] = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return table
