"""Checks of images, maps and explain functions that all metrics share. Each raises a `WhycamError`."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from whycam.cam.maps import finite
from whycam.errors import WhycamError

Explain = Callable[[Tensor], Tensor]
"""(n, C, H, W) images in [0, 1] → (n, h, w) signed raw maps.

A metric always calls it with all images, in their order, so that the function can keep one fixed class for each image.
It should: with the class that is predicted for the *altered* image, a map may change only because the prediction did.
"""


def check_images(images: Tensor) -> None:
    """Require images before normalization.

    Raises:
        WhycamError: not (B, C, H, W) floats in [0, 1].
    """
    if images.ndim != 4:
        raise WhycamError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    low, high = value_range(images)
    if not images.is_floating_point() or not (low >= 0 and high <= 1):  # a comparison with NaN is false
        raise WhycamError(
            f"images must be floats in [0, 1], got {dtype_name(images)} from {low:g} to {high:g}: pixels are altered "
            "before they are normalized, so give normalization as preprocess"
        )


def check_map_shape(maps: Tensor) -> None:
    """Require (B, h, w).

    Raises:
        WhycamError: another number of axes, or maps without cells.
    """
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise WhycamError(f"maps must be (B, h, w), got {tuple(maps.shape)}")


def check_finite(maps: Tensor, consequence: str) -> None:
    """Require maps without NaN and infinity.

    Args:
        maps: (B, h, w).
        consequence: ends the error message, "its pixels have no order" for example.

    Raises:
        WhycamError: a map is not finite.
    """
    broken = ~finite(maps)
    if bool(broken.any()):
        raise WhycamError(f"map {int(broken.int().argmax())} holds NaN or infinity: {consequence}")


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Require one finite map for each image.

    Raises:
        WhycamError: not (B, h, w), another number of maps than of images, or not finite.
    """
    if maps.ndim != 3 or len(images) != len(maps):
        raise WhycamError(
            "images must be (B, C, H, W) and maps (B, h, w), one for each image, got "
            f"{tuple(images.shape)} and {tuple(maps.shape)}"
        )
    check_finite(maps, "its pixels have no order")


def check_noise(name: str, value: float) -> None:
    """Require a finite number above 0.

    Raises:
        WhycamError: it is not.
    """
    if not 0 < value < math.inf:
        raise WhycamError(f"{name} must be a number above 0, for images in [0, 1], got {value}")


def maps_from(explain: Explain, images: Tensor) -> Tensor:
    """Call ``explain`` and check its result.

    Returns:
        (B, h, w) raw maps without an autograd graph. For no images, ``explain`` is not called.

    Raises:
        WhycamError: ``explain`` returns something else.
    """
    if not len(images):
        return images.new_zeros(0, 1, 1)
    maps: object = explain(images)
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(images) or not maps.numel():
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise WhycamError(f"explain answered {len(images)} images with {given}, expected (n, h, w) maps, one for each")
    return maps.detach()


def value_range(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN if any value is NaN, and (0, 1) for an empty tensor."""
    return (float(values.min()), float(values.max())) if values.numel() else (0.0, 1.0)


def dtype_name(tensor: Tensor) -> str:
    """The name without its module: "float32" for ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")
