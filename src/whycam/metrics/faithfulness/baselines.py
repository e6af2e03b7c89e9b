"""Baselines: the pixels that replace hidden ones. No choice is neutral, so report a score with its baseline."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.metrics.checks import check_images, value_range

FillName = Literal["black", "mean", "blur"]
Fill = FillName | Tensor

_SIGMAS = 16  # per shorter image side: this blur removes objects and keeps the scene


def background(images: Tensor, fill: Fill) -> Tensor:
    """The baseline of each image: what it shows where its own pixels are hidden.

    * ``"black"``: 0. Black is a color like any other, and every hole has a sharp edge.
    * ``"mean"``: each image's mean color.
    * ``"blur"``: each image blurred by a Gaussian with σ = 1/16 of the shorter side. At the borders the weights of the
      existing pixels are scaled to a sum of 1. Large, smooth shapes stay recognizable.

    Args:
        images: (B, C, H, W) in [0, 1].
        fill: one of the three names, or pixels in [0, 1] that broadcast to ``images``: (C, 1, 1) is one color for all.

    Returns:
        (B, C, H, W) in [0, 1], with the images' type and device; a view where pixels repeat.

    Raises:
        WhycamError: the images are not floats in [0, 1], the name is unknown, or the pixels do not fit.
    """
    check_images(images)
    if isinstance(fill, Tensor):
        return _given(images, fill)
    if fill == "black":
        return images.new_zeros(()).expand_as(images)
    if fill == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if fill == "blur":
        return _blurred(images).clamp(max=1)  # rounding can lift the weights' sum above 1
    raise WhycamError(f"fill is {', '.join(map(repr, get_args(FillName)))} or a tensor of pixels, not {fill!r}")


def _given(images: Tensor, fill: Tensor) -> Tensor:
    try:
        pixels = fill.to(images).expand_as(images)
    except RuntimeError as error:
        raise WhycamError(
            f"fill is {tuple(fill.shape)} and does not broadcast to images of {tuple(images.shape)}: "
            "give (C, 1, 1) for a color, or (B, C, H, W)"
        ) from error
    low, high = value_range(fill)
    if not (low >= 0 and high <= 1):  # a comparison with NaN is false
        raise WhycamError(f"fill holds values from {low:g} to {high:g}: pixels must lie in [0, 1], like the images")
    return pixels


def _blurred(images: Tensor) -> Tensor:
    """Blur by one small matrix product per axis, so that the kernel is never truncated."""
    sigma = min(images.shape[2:]) / _SIGMAS
    # Half precision is too coarse for positions and weights.
    result = images.to(torch.promote_types(images.dtype, torch.float32))
    for axis in (2, 3):
        positions = torch.arange(images.shape[axis], device=result.device, dtype=result.dtype)
        weights = torch.exp(-((positions[:, None] - positions) ** 2) / (2 * sigma**2))
        weights = weights / weights.sum(dim=1, keepdim=True)
        result = (result.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return result.to(images)
