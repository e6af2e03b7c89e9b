"""Batched augmentation: an epoch's random draws as one plan, and pure tensor functions that carry it out.

Every image has its own draws. They are made on the CPU, for a whole epoch at once, from the run's seed and the
epoch; a batch is a slice of the plan, so a resumed run or another number of processes sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from whycam.seeds import generator
from whycam.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The draws for n images in the order in which they are trained on; every tensor is (n,).

    Attributes:
        index: which image.
        top, left: where its crop begins, in pixels of the padded image.
        flip: whether it is mirrored.
        hole_top, hole_left: where its hole begins, in pixels of the crop; −(hole's side) puts it outside: no hole.
        gain, offset: brightness and contrast: pixel · gain + offset in [0, 1] units; 1 and 0 leave it.
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

    def part(self, start: int, stop: int) -> Plan:
        """The draws from ``start`` to ``stop``, as views."""
        return Plan(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    def to(self, device: torch.device) -> Plan:
        """The plan on ``device``."""
        return Plan(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def plan_epoch(recipe: Recipe, images: int, side: int, seed: int, epoch: int) -> Plan:
    """Draw everything that is random about ``epoch`` (from 0) over ``images`` square images of ``side`` pixels.

    A crop of the image's own size moves by up to ``pad`` pixels; a smaller one moves within the image, and over its
    edge only by what ``pad`` is larger than that room; a larger one moves within the padded image.
    """
    draw = generator(seed, "augment", epoch)
    size = recipe.crop_size(epoch, side)
    reach = min(recipe.pad, max(0, recipe.pad - (side - size) // 2))
    positions = side + 2 * reach - size + 1
    index = torch.randperm(images, generator=generator(seed, "order", epoch))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(images, generator=draw)

    def position(count: int) -> Tensor:
        return torch.randint(count, (images,), generator=draw)

    top, left = position(positions), position(positions)
    coin = torch.rand(images, generator=draw) < 0.5
    if recipe.flip == "alternate":
        # One coin per image for the whole run, turned over every epoch.
        coin = torch.rand(images, generator=generator(seed, "flip"))[index] < 0.5
        coin = coin ^ bool(epoch % 2)
    flip = coin if recipe.flip != "none" else torch.zeros_like(coin)
    hole = min(recipe.cutout, size)
    holed = torch.rand(images, generator=draw) < recipe.cutout_probability
    hole_top, hole_left = (torch.where(holed, position(size - hole + 1), -hole) for _ in range(2))
    jittered = torch.rand(images, generator=draw) < recipe.jitter_probability
    gain = torch.where(jittered, uniform(1 - recipe.jitter, 1 + recipe.jitter), 1.0)
    offset = torch.where(jittered, uniform(-recipe.jitter, recipe.jitter), 0.0)
    margin = recipe.pad - reach
    return Plan(index, top + margin, left + margin, flip, hole_top, hole_left, gain, offset)


def crop_and_flip(images: Tensor, index: Tensor, top: Tensor, left: Tensor, size: int, flip: Tensor) -> Tensor:
    """Cut one square per entry out of (N, H, W, C) padded images with a single gather.

    Returns:
        (B, size, size, C) in the images' type: image ``index[i]`` from (``top[i]``, ``left[i]``), mirrored where
        ``flip[i]``.
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
