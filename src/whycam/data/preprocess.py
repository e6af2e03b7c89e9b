"""What a network expects of its input; travels with every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam._lazy import renamed_attribute
from whycam.errors import WhycamError

CHANNEL_ORDERS = ("RGB", "BGR", "L")


@dataclass(frozen=True)
class Preprocess:
    """Turns stored pixels into network input: size, channel order, scaling, normalization.

    Attributes:
        mean: per-channel mean in [0, 1] units, in ``channels`` order.
        std: per-channel standard deviation in [0, 1] units, each above zero.
        size: (height, width) in pixels. Images of another size are resized so that they cover it (bilinear,
            antialiased) and cropped to the center.
        channels: the channel order the network was trained on: "RGB", "BGR" or "L" (gray).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    channels: Literal["RGB", "BGR", "L"] = "RGB"

    def __post_init__(self) -> None:
        if self.channels not in CHANNEL_ORDERS:
            raise WhycamError(
                f"preprocess: channels is {self.channels!r}; it must be one of {', '.join(CHANNEL_ORDERS)}"
            )
        expected = 1 if self.channels == "L" else 3
        if len(self.mean) != expected or len(self.std) != expected:
            raise WhycamError(
                f"preprocess: {self.channels} has {expected} channel(s), but mean has {len(self.mean)} value(s) "
                f"and std {len(self.std)}"
            )
        if not all(value > 0 for value in self.std):
            raise WhycamError(f"preprocess: every std must be above zero, got {self.std}")
        if len(self.size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.size):
            raise WhycamError(f"preprocess: size must be two positive whole numbers (height, width), got {self.size}")

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch as the network expects it.

        Args:
            images: (B, 3, h, w) RGB, uint8 in 0…255 or float in [0, 1], on any device.

        Returns:
            (B, C, H, W) float32 on the same device, H and W from ``size``.

        Raises:
            WhycamError: the batch has another shape, type or range, or holds NaN.
        """
        return self._normalize(resize_center_crop(_unit_interval(images), self.size))

    def normalize(self, images: Tensor) -> Tensor:
        """The same without resizing, for networks that take images of any size.

        Args:
            images: (B, 3, h, w) RGB, uint8 in 0…255 or float in [0, 1], on any device.

        Returns:
            (B, C, h, w) float32 on the same device.

        Raises:
            WhycamError: the batch has another shape, type or range, or holds NaN.
        """
        return self._normalize(_unit_interval(images))

    normalise = renamed_attribute("normalise", "normalize")

    def _normalize(self, pixels: Tensor) -> Tensor:
        if self.channels == "BGR":
            pixels = pixels.flip(1)
        elif self.channels == "L":
            # ITU-R 601 luma, as Pillow converts RGB to L.
            pixels = (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def invert(self, inputs: Tensor) -> Tensor:
        """Turn (B, C, H, W) network input back into (B, 3, H, W) uint8 RGB pixels, for display."""
        mean, std = (inputs.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        pixels = inputs * std + mean
        if self.channels == "BGR":
            pixels = pixels.flip(1)
        elif self.channels == "L":
            pixels = pixels.expand(-1, 3, -1, -1)
        return pixels.mul(255).round().clamp(0, 255).to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that ``config.json`` holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read the JSON form back; a missing or malformed entry is a ``WhycamError``."""
        try:
            return cls(
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
                size=(int(values["size"][0]), int(values["size"][1])),
                channels=values.get("channels", "RGB"),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise WhycamError(
                f"preprocess: cannot be read ({error!r}); it needs mean, std and size, for example {CIFAR10.to_dict()}"
            ) from error


CIFAR10 = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), size=(32, 32))


def resize_center_crop(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) floats so that they cover ``size`` and crop the center; equal sizes pass untouched."""
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    scale = max(size[0] / height, size[1] / width)
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    pixels = F.interpolate(pixels, size=covering, mode="bilinear", align_corners=False, antialias=True)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return pixels[..., top : top + size[0], left : left + size[1]]


def _unit_interval(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise WhycamError(f"images must have the shape (B, 3, height, width), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise WhycamError(f"images must be uint8 or float, got {images.dtype}")
    pixels = images.float()
    low, high = (pixels.min().item(), pixels.max().item()) if pixels.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise WhycamError(
            f"float images must lie in [0, 1] before normalization, got values from {low:g} to {high:g}"
            " (already normalized? then pass them to the model directly)"
        )
    return pixels
