"""From a layer's own layout to (B, C, h, w)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.errors import WhycamError


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """A feature pyramid's levels (B, C, …) → (B, levels · C, h, w) at the coarsest one's size, absolute values."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], dim=1)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Swin's (B, h·w, C) or (B, h, w, C) → (B, C, h, w); ``height`` and ``width`` where the grid is not square."""
    if tensor.ndim == 4:
        return tensor.movedim(-1, 1)
    height, width = _grid(tensor.shape[1], height, width, (7, 7))
    return tensor.reshape(len(tensor), height, width, -1).movedim(-1, 1)


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """A ViT's (B, 1 + h·w, C), class token first → (B, C, h, w); ``height`` and ``width`` where not square."""
    height, width = _grid(tensor.shape[1] - 1, height, width, (14, 14))
    return tensor[:, 1:].reshape(len(tensor), height, width, -1).movedim(-1, 1)


def _grid(tokens: int, height: int, width: int, usual: tuple[int, int]) -> tuple[int, int]:
    if height * width == tokens:
        return height, width
    side = math.isqrt(tokens)
    # The defaults fit 224×224 images only; a size that was asked for is never replaced.
    if (height, width) == usual and side * side == tokens:
        return side, side
    raise WhycamError(f"{tokens} tokens are no {height}×{width} grid: give height and width to the reshape transform")
