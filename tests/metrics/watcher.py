"""A network of which it is known where it looks, images for it, and what a measurement makes on the way."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

SIDE = 12


class Watcher(nn.Module):
    """Its first class speaks for light in a square, the second for light elsewhere."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        x = self.dropout(x)
        square = x[:, :, 2:6, 3:7].mean(dim=(1, 2, 3))
        return torch.stack([8 * square, 4 * x.mean(dim=(1, 2, 3))], dim=1)


def scene(count, dtype=torch.float32):
    """Dim texture with a bright square, and the map that knows where it is."""
    images = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    images[:, :, 2:6, 3:7] += 0.6
    truth = torch.zeros(count, SIDE, SIDE)
    truth[:, 2:6, 3:7] = 1
    return images, truth


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made; one that shares its numbers with another is not."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            there = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
            if out.untyped_storage().data_ptr() not in there:
                self.numbers = max(self.numbers, out.numel())
        return out
