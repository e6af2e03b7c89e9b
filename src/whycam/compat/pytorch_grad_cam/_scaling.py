"""grad-cam's way from raw maps to its output, on the device: min-max, resize."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def scale(maps: Tensor, target_size: Sequence[int] | None = None) -> Tensor:
    """Min-max scale each map (B, …) to [0, 1], then resize it; float32.

    Args:
        maps: (B, h, w) or (B, d, h, w).
        target_size: the new size with the axes in reverse, (width, height) or (width, height, depth).
    """
    shape = (-1, *[1] * (maps.ndim - 1))
    maps = maps - maps.flatten(1).amin(dim=1).view(shape)
    maps = maps / (1e-7 + maps.flatten(1).amax(dim=1).view(shape))
    return (maps if target_size is None else resized(maps.float(), tuple(target_size)[::-1])).float()


def scale_channels(maps: Tensor, target_size: Sequence[int] | None = None) -> Tensor:
    """(B, C, …), each channel scaled by itself; see `scale`."""
    scaled = scale(maps.flatten(0, 1), target_size)
    return scaled.reshape(*maps.shape[:2], *scaled.shape[1:])


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, …) → (B, *size): bilinear as OpenCV does it, or cubic for volumes as SciPy's ``zoom`` does it."""
    size = tuple(int(n) for n in size)
    if maps.ndim == 4:
        for axis, (old, new) in enumerate(zip(maps.shape[1:], size, strict=True), start=1):
            weights = torch.from_numpy(_cubic(old, new)).to(maps)
            maps = torch.tensordot(maps, weights, dims=([axis], [1])).movedim(-1, axis)
        return maps
    if tuple(maps.shape[1:]) == size:
        return maps
    # In single precision, rounded coordinates are visible where neighboring values differ much.
    precise = maps if maps.device.type == "mps" else maps.double()
    return F.interpolate(precise[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].to(maps.dtype)


@lru_cache(maxsize=64)
def _cubic(old: int, new: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(new, old): cubic B-spline interpolation with the first and last samples kept in place, mirrored beyond them."""
    if old == 1:
        return np.ones((new, 1))
    values = np.zeros((old, old))
    for row in range(old):
        for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
            values[row, _mirrored(row + step, old)] += weight
    coefficients = np.linalg.inv(values)
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    basis = np.zeros((new, old))
    for row, place in enumerate(places):
        start = int(np.floor(place))
        for knot in range(start - 1, start + 3):
            distance = abs(place - knot)
            near, far = 2 / 3 - distance**2 + distance**3 / 2, max(2 - distance, 0) ** 3 / 6
            basis[row, _mirrored(knot, old)] += near if distance < 1 else far
    return basis @ coefficients


def _mirrored(index: int, length: int) -> int:
    period = 2 * (length - 1)
    index = abs(index) % period
    return period - index if index >= length else index
