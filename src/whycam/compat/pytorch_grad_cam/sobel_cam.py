"""A control: an edge map, which does not depend on the network."""

from __future__ import annotations

import numpy as np

from whycam.compat.pytorch_grad_cam._arrays import Array


def sobel_cam(img: Array) -> Array:
    """(H, W, 3) RGB uint8 → (H, W) uint8: the mean of the absolute horizontal and vertical Sobel derivatives."""
    red, green, blue = (img[..., channel].astype(np.int64) for channel in range(3))
    # The weights 0.299, 0.587 and 0.114 in fixed point, as OpenCV rounds them.
    gray = (red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15
    padded = np.pad(gray, 1, mode="reflect")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = np.minimum(np.abs(smooth_down[:, 2:] - smooth_down[:, :-2]), 255)
    down = np.minimum(np.abs(smooth_across[2:] - smooth_across[:-2]), 255)
    return np.asarray(np.rint((across + down) / 2).astype(np.uint8))
