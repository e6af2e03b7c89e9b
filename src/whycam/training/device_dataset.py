"""A whole data set as bytes on the training device, and its batches as network input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.data.preprocess import Preprocess
from whycam.data.source import ImageSource
from whycam.errors import WhycamError
from whycam.training.augment import AugmentationPlan, change_brightness, crop_and_flip, fill_holes
from whycam.training.recipe import Recipe


class DeviceDataset:
    """Labeled images on a device: uint8, channels last, padded once.

    Attributes:
        images: (N, H + 2·pad, W + 2·pad, 3) uint8.
        labels: (N,) int64.
        side: H = W in pixels, without the padding.

    Raises:
        WhycamError: there are no images, they are not square and of ``preprocess.size``, or ``pad`` is too large.
    """

    def __init__(
        self, source: ImageSource, preprocess: Preprocess, device: torch.device, pad: int = 0, mode: str = "zero"
    ) -> None:
        if not len(source):
            raise WhycamError(f"{source.name} ({source.split}): there are no images to train or test on")
        images = source.read(range(len(source))).to(device)
        height, width = images.shape[2:]
        if height != width or (height, width) != preprocess.size:
            raise WhycamError(
                f"{source.name} ({source.split}): images are {height}×{width}; training needs them to be "
                f"{preprocess.size[0]}×{preprocess.size[1]}"
            )
        if mode == "reflect" and pad >= height:
            raise WhycamError(f"recipe: pad is {pad}; reflecting needs it to be below the images' {height} pixels")
        if pad:
            # In chunks, because torch needs a float copy for reflection.
            kind = "reflect" if mode == "reflect" else "constant"
            images = torch.cat([F.pad(c.float(), (pad,) * 4, mode=kind).byte() for c in torch.split(images, 4096)])
        self.images = images.permute(0, 2, 3, 1).contiguous()
        self.labels = torch.as_tensor(source.labels, dtype=torch.int64).to(device)
        self.side = height
        self.pad = pad
        self.mean = torch.tensor(preprocess.mean, device=device)
        self.std = torch.tensor(preprocess.std, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def augmented_batch(self, plan: AugmentationPlan, recipe: Recipe, size: int) -> tuple[Tensor, Tensor]:
        """Apply ``plan``: (B, 3, size, size) float32 normalized input (channels_last in memory) and (B,) labels.

        The order is the study's: crop and mirror, hole, brightness and contrast, normalization.
        """
        x = crop_and_flip(self.images, plan.index, plan.top, plan.left, size, plan.flip).float() / 255
        if recipe.cutout:
            x = fill_holes(x, plan.hole_top, plan.hole_left, min(recipe.cutout, size), self.mean)
        if recipe.jitter:
            x = change_brightness(x, plan.gain, plan.offset)
        return ((x - self.mean) / self.std).permute(0, 3, 1, 2), self.labels[plan.index]

    def plain_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images ``start`` to ``stop`` without augmentation, normalized, and their labels."""
        inner = slice(self.pad, self.pad + self.side)
        x = self.images[start:stop, inner, inner].float() / 255
        return ((x - self.mean) / self.std).permute(0, 3, 1, 2), self.labels[start:stop]
