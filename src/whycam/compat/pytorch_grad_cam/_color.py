"""Colors with the numbers that OpenCV gives them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.errors import WhycamError

JET = 2
"""OpenCV's number for the color map jet."""

# matplotlib has the same tables for these of OpenCV's.
_MATPLOTLIB = {
    13: "magma", 14: "inferno", 15: "plasma", 16: "viridis", 17: "cividis", 20: "turbo",
}  # fmt: skip

_GIST_RAINBOW = (
    (0.000, (1.0, 0.0, 0.16)), (0.030, (1.0, 0.0, 0.0)), (0.215, (1.0, 1.0, 0.0)), (0.400, (0.0, 1.0, 0.0)),
    (0.586, (0.0, 1.0, 1.0)), (0.770, (0.0, 0.0, 1.0)), (0.954, (1.0, 0.0, 1.0)), (1.000, (1.0, 0.0, 0.75)),
)  # fmt: skip


def bytes_of(unit: Array) -> Array:
    """[0, 1] → uint8, rounded down."""
    return np.asarray(255 * unit).astype(np.uint8)


def color_map(values: Array, number: int, *, rgb: bool) -> Array:
    """(H, W) uint8 → (H, W, 3) uint8, RGB or BGR.

    Raises:
        WhycamError: the color map needs a package that is not installed.
    """
    colored: Array = _table(number)[values]
    return colored if rgb else colored[..., ::-1]


@lru_cache(maxsize=32)
def _table(number: int) -> Array:
    """(256, 3) uint8 RGB."""
    if number == JET:
        place = 4 * np.arange(256)
        red = np.minimum(place - 382, 1148 - place)
        green = np.minimum(place - 128, 892 - place)
        blue = np.minimum(place + 128, 638 - place)
        blue[159] = 1  # a rounding of OpenCV's own
        return np.stack((red, green, blue), axis=1).clip(0, 255).astype(np.uint8)
    if number in _MATPLOTLIB:
        try:
            from matplotlib import colormaps
        except ImportError:
            pass
        else:
            floats = np.asarray(colormaps[_MATPLOTLIB[number]](np.arange(256)))[:, :3]
            return np.asarray(np.rint(255 * floats).astype(np.uint8))
    try:
        import cv2  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise WhycamError(
            f"the color map {number} comes from OpenCV, which is not installed; jet ({JET}) needs nothing, "
            f"{', '.join(f'{name} ({n})' for n, name in _MATPLOTLIB.items())} need matplotlib"
        ) from error
    table: Array = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)[:, 0, ::-1]
    return table


def rainbow(places: Array) -> list[Array]:
    """(n,) on [0, 1) → matplotlib's gist_rainbow there, (3,) each on [0, 1]."""
    stops = np.array([place for place, _ in _GIST_RAINBOW])
    colors = np.array([color for _, color in _GIST_RAINBOW])
    steps = np.floor(places * 256).clip(0, 255) / 255
    return [np.array([np.interp(step, stops, colors[:, channel]) for channel in range(3)]) for step in steps]


def with_value(color: Array, value: Array) -> Array:
    """One RGB color at other brightnesses: its hue and saturation, with (H, W) as HSV's value → (H, W, 3) uint8.

    Hue is kept in steps of two degrees and saturation in 255, as OpenCV's 8-bit HSV has them.
    """
    red, green, blue = (int(channel) for channel in color)
    top, low = max(red, green, blue), min(red, green, blue)
    span = top - low
    if not span:
        hue = 0.0
    elif top == red:
        hue = 60 * (green - blue) / span
    elif top == green:
        hue = 120 + 60 * (blue - red) / span
    else:
        hue = 240 + 60 * (red - green) / span
    sixth = (round(hue % 360 / 2) % 180) / 30
    saturation = (round(255 * span / top) if top else 0) / 255
    sector, part = int(sixth), sixth - int(sixth)
    bright = value.astype(np.float64)
    p, q, t = (
        bright * (1 - saturation), bright * (1 - saturation * part), bright * (1 - saturation * (1 - part)),
    )  # fmt: skip
    order = [(bright, t, p), (q, bright, p), (p, bright, t), (p, q, bright), (t, p, bright), (bright, p, q)][sector % 6]
    return np.rint(np.stack(order, axis=-1)).astype(np.uint8)
