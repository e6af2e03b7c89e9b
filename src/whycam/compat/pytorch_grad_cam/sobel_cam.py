"""Edges, for comparison: what a map looks like that sees no network."""

from __future__ import annotations

import numpy as np

from whycam.compat.pytorch_grad_cam._arrays import Array


def sobel_cam(img: Array) -> Array:
    """(H, W, 3) RGB uint8 → (H, W) uint8: half the size of the grey values' differences in each direction."""
    red, green, blue = (img[..., channel].astype(np.int64) for channel in range(3))
    # The weights 0.299, 0.587 and 0.114 in fixed point, as OpenCV rounds them.
    grey = (red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15
    padded = np.pad(grey, 1, mode="reflect")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = np.minimum(np.abs(smooth_down[:, 2:] - smooth_down[:, :-2]), 255)
    down = np.minimum(np.abs(smooth_across[2:] - smooth_across[:-2]), 255)
    return np.asarray(np.rint((across + down) / 2).astype(np.uint8))
