"""Decode batches of images, from image files or from encoded bytes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whycam.data.decode import Pixels, decode_image, decode_without_warning_filter
from whycam.data.preprocess import resize_center_crop
from whycam.errors import WhycamError

_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class EncodedImage:
    """One image as it is stored.

    Attributes:
        content: its file, or its bytes.
        label: what error messages call it.
    """

    content: Path | bytes
    label: str


def decode_batch(items: Sequence[EncodedImage], size: tuple[int, int] | None, first: EncodedImage) -> Tensor:
    """Decode a batch, side by side on several threads.

    Args:
        items: what to read.
        size: (height, width) in pixels that every image is made to cover and is cropped to; None if they are all
            of one size already.
        first: an image of the same source, which sets the size where ``size`` is None.

    Returns:
        (B, 3, H, W) uint8 RGB.

    Raises:
        WhycamError: an image cannot be read, or differs in size while ``size`` is None.
    """
    if size is None:
        height, width = decode_image(first.content, first.label).shape[:2]
    else:
        height, width = size
    if not items:
        return torch.empty((0, 3, height, width), dtype=torch.uint8)

    def load(item: EncodedImage) -> Tensor:
        pixels = decode_without_warning_filter(item.content, item.label)
        if size is None and pixels.shape[:2] != (height, width):
            raise WhycamError(
                f"{item.label} is {pixels.shape[1]}×{pixels.shape[0]} pixels, {first.label} is {width}×{height}: "
                "give the size that images of different sizes are to be fitted to (the model's preprocess.size)"
            )
        return resize_center_crop_uint8(pixels, (height, width))

    # Silenced here for all threads at once, because the filter is a property of the process.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(_WORKERS, len(items))) as pool:
        warnings.simplefilter("ignore")
        return torch.stack(list(pool.map(load, items)))


def resize_center_crop_uint8(pixels: Pixels, size: tuple[int, int]) -> Tensor:
    """``preprocess.resize_center_crop`` for one (H, W, 3) uint8 image: (3, h, w) uint8, rounded to the nearest level.

    A channel at a time, since a large photograph would take four times its size as floats.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if tuple(image.shape[1:]) == size:
        return image.contiguous()
    channels = [resize_center_crop(channel[None, None].float(), size)[0, 0] for channel in image]
    return torch.stack(channels).round().clamp(0, 255).to(torch.uint8)
