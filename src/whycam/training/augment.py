"""Batched augmentation: the random numbers of an epoch as one plan, and pure tensor functions that apply it.

Every image has its own random numbers. They are drawn on the CPU for a whole epoch at once, from the run's seed and the
epoch. A batch is a slice of the plan, so a resumed run or another number of processes sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from whycam.seeds import generator
from whycam.training.recipe import Recipe


@dataclass(frozen=True)
class AugmentationPlan:
    """The random numbers for n images, in the order of training; every tensor is (n,).

    Attributes:
        index: of the image in the data set.
        top, left: the crop's first row and column, in pixels of the padded image.
        flip: whether the image is mirrored.
        hole_top, hole_left: the hole's first row and column, in pixels of the crop; −(hole's side) means no hole.
        gain, offset: contrast and brightness: pixel · gain + offset in [0, 1] units; 1 and 0 mean no change.
    """

    index: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    hole_top: Tensor
    hole_left: Tensor
    gain: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def slice(self, start: int, stop: int) -> AugmentationPlan:
        """Images ``start`` to ``stop``, as views."""
        return AugmentationPlan(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    def to(self, device: torch.device) -> AugmentationPlan:
        """The plan on ``device``."""
        return AugmentationPlan(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def plan_epoch(recipe: Recipe, images: int, side: int, seed: int, epoch: int) -> AugmentationPlan:
    """Draw all random numbers of ``epoch`` (from 0) for ``images`` square images of ``side`` pixels.

    A crop may lie up to ``pad`` pixels away from the center, or anywhere in the image if that allows more. So a small
    crop reaches over the image's edge only if ``pad`` is large. A crop never leaves the padded image.
    """
    draw = generator(seed, "augment", epoch)
    size = recipe.crop_size(epoch, side)
    # How far crops may reach over the image's edge.
    overhang = min(recipe.pad, max(0, recipe.pad - (side - size) // 2))
    positions = side + 2 * overhang - size + 1
    index = torch.randperm(images, generator=generator(seed, "order", epoch))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(images, generator=draw)

    def position(count: int) -> Tensor:
        return torch.randint(count, (images,), generator=draw)

    top, left = position(positions), position(positions)
    coin = torch.rand(images, generator=draw) < 0.5
    if recipe.flip == "alternate":
        # One coin per image for the whole run; its side changes every epoch.
        coin = torch.rand(images, generator=generator(seed, "flip"))[index] < 0.5
        coin = coin ^ bool(epoch % 2)
    flip = coin if recipe.flip != "none" else torch.zeros_like(coin)
    hole = min(recipe.cutout, size)
    holed = torch.rand(images, generator=draw) < recipe.cutout_probability
    hole_top, hole_left = (torch.where(holed, position(size - hole + 1), -hole) for _ in range(2))
    jittered = torch.rand(images, generator=draw) < recipe.jitter_probability
    gain = torch.where(jittered, uniform(1 - recipe.jitter, 1 + recipe.jitter), 1.0)
    offset = torch.where(jittered, uniform(-recipe.jitter, recipe.jitter), 0.0)
    margin = recipe.pad - overhang
    return AugmentationPlan(index, top + margin, left + margin, flip, hole_top, hole_left, gain, offset)


def crop_and_flip(images: Tensor, index: Tensor, top: Tensor, left: Tensor, size: int, flip: Tensor) -> Tensor:
    """Cut one square per entry of ``index`` out of (N, H, W, C) padded images, with a single gather.

    Returns:
        (B, size, size, C) in the images' type: entry i is image ``index[i]`` from (``top[i]``, ``left[i]``), mirrored
        if ``flip[i]``.
    """
    steps = torch.arange(size, device=images.device)
    rows = top[:, None] + steps
    columns = left[:, None] + torch.where(flip[:, None], size - 1 - steps, steps)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def fill_holes(x: Tensor, top: Tensor, left: Tensor, size: int, fill: Tensor) -> Tensor:
    """Set a square of ``size`` pixels in each of (B, H, W, C) images to ``fill`` (C,); parts outside are ignored."""
    rows = torch.arange(x.shape[1], device=x.device) - top[:, None]
    columns = torch.arange(x.shape[2], device=x.device) - left[:, None]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return torch.where(inside[..., None], fill, x)


def change_brightness(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """(B, H, W, C) pixels in [0, 1] → clip(pixel · gain + offset) with one gain and offset per image."""
    return (x * gain[:, None, None, None] + offset[:, None, None, None]).clamp(0, 1)
