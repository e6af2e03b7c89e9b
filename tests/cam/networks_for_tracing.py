"""Networks that a tracer has to handle, or to refuse."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Functional(nn.Module):
    """Uses shapes, reshapes, functions and in-place methods, and stores its values on itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.history = []
        self.last = None

    def forward(self, x):
        b, _, h, w = x.shape
        y = self.conv(x)
        y.mul_(0.5)
        y = F.gelu(y)
        y = y.reshape(b, 6, h * w).permute(0, 2, 1)
        y = F.dropout(y, 0.5, training=self.training)
        self.last = y
        self.history.append(y)
        return F.linear(y.mean(1), self.weight)


class SequenceFirst(nn.Module):
    """The batch is the second axis of a boundary value, and windows multiply the batch of another one."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x)
        windows = x.reshape(x.size(0) * 2, 4, 4)
        tokens = x.flatten(2).permute(2, 0, 1)
        y = self.inner(x.flatten(2).transpose(1, 2))
        y = y.transpose(0, 1) + tokens
        return self.head(y.mean(0)) + windows.reshape(y.size(1), -1)[:, :5]


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = self.conv(x)
        if y.sum() > 1e9:
            y = y * 2
        return self.head(y.mean((2, 3)))


class MixesTheBatch(nn.Module):
    """The logits depend on the mean over the batch, so they cannot be selected by rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)) + x.mean())


class PairLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        y = self.conv(x)
        return y, y.mean()


class Pair(nn.Module):
    """The layer returns a tuple."""

    def __init__(self):
        super().__init__()
        self.layer = PairLayer()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(y.mean((2, 3)))


class TwoInputs(nn.Module):
    """Takes a second tensor and a flag besides the images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x, shift=None, double=False):
        y = self.head(self.conv(x).mean((2, 3)))
        y = y + shift
        return {"loss": None, "logits": y * 2 if double else y}
