"""What takes the place of hidden pixels: no choice is neutral, so a score is told with the one it was measured with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import check_images

FillName = Literal["black", "mean", "blur"]
Fill = FillName | Tensor

_SIGMAS = 16  # in the shorter side of an image: coarse enough to wipe objects out, fine enough to keep the scene


def background(images: Tensor, fill: Fill) -> Tensor:
    """What an image shows where its own pixels are hidden.

    * ``"black"``: 0, a color like any other, with a sharp edge around every hole.
    * ``"mean"``: each image's own mean color.
    * ``"blur"``: each image blurred by a Gaussian, σ a sixteenth of its shorter side. At the borders the weights of
      the pixels that exist are scaled to a sum of 1. What is large and smooth stays recognizable.

    Args:
        images: (B, C, H, W) in [0, 1].
        fill: one of the three, or pixels in [0, 1] that broadcast to ``images``: (C, 1, 1) is one color for all.

    Returns:
        (B, C, H, W) in [0, 1], of the images' type and on their device; a view where pixels repeat.

    Raises:
        WhycamError: the images are no floats in [0, 1], there is no such fill, or its pixels do not fit.
    """
    check_images(images)
    if isinstance(fill, Tensor):
        return _given(images, fill)
    if fill == "black":
        return images.new_zeros(()).expand_as(images)
    if fill == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if fill == "blur":
        return _blurred(images).clamp(max=1)  # its weights' sum may be rounded to more than 1
    raise WhycamError(f"fill is {', '.join(map(repr, get_args(FillName)))} or a tensor of pixels, not {fill!r}")


def _given(images: Tensor, fill: Tensor) -> Tensor:
    try:
        pixels = fill.to(images).expand_as(images)
    except RuntimeError as error:
        raise WhycamError(
            f"fill is {tuple(fill.shape)} and does not broadcast to images of {tuple(images.shape)}: "
            "give (C, 1, 1) for a color, or (B, C, H, W)"
        ) from error
    low, high = (float(fill.min()), float(fill.max())) if fill.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise WhycamError(f"fill holds values from {low:g} to {high:g}: its pixels lie in [0, 1], as the images' do")
    return pixels


def _blurred(images: Tensor) -> Tensor:
    """One small matrix product an axis, so that the kernel need not be cut off anywhere."""
    sigma = min(images.shape[2:]) / _SIGMAS
    # Half precision is too coarse for places and weights.
    result = images.to(torch.promote_types(images.dtype, torch.float32))
    for axis in (2, 3):
        places = torch.arange(images.shape[axis], device=result.device, dtype=result.dtype)
        weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
        weights = weights / weights.sum(dim=1, keepdim=True)
        result = (result.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return result.to(images)
