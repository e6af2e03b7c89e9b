"""Small networks with the features that explanation tools often fail on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class InPlace(nn.Module):
    """Two layers whose outputs are overwritten in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.act2 = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.conv2(x)
        x.mul_(2.0)
        return self.head(self.act2(x).mean((2, 3)))


class Reused(nn.Module):
    """One convolution that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.shared(x).relu()
        x = self.shared(x).relu()
        return self.head(x.mean((2, 3)))


class TupleOutput(nn.Module):
    """Returns its logits and its features in a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        features = self.conv(x).relu()
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class Raises(nn.Module):
    """Fails behind the layer ``conv``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bad = nn.Identity()
        self.bad.register_forward_hook(self.fail)

    @staticmethod
    def fail(*_):
        raise ZeroDivisionError("inside the forward pass")

    def forward(self, x):
        return self.bad(self.conv(x)).mean((2, 3))


class UnusedLayer(nn.Module):
    """Has a layer that never runs and a layer whose output is not used."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.idle = nn.Conv2d(3, 6, 3)
        self.dead_end = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        self.dead_end(x)
        return self.conv(x).mean((2, 3))


class Residual(nn.Module):
    """A skip connection around the layer, added in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        y += x
        y = self.act(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


class Dense(nn.Module):
    """Each layer gets all earlier outputs, so a split has several boundary values."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(7, 4, 3, padding=1)
        self.conv = nn.Conv2d(11, 4, 3, padding=1)
        self.last = nn.Conv2d(15, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        one = torch.relu(self.one(x))
        two = torch.relu(self.two(torch.cat([x, one], 1)))
        conv = torch.relu(self.conv(torch.cat([x, one, two], 1)))
        features = self.last(torch.cat([x, one, two, conv], 1))
        return self.head(features.mean((2, 3)))


class Branches(nn.Module):
    """The layer is one of two branches; the other branch runs after it and does not depend on it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.conv = nn.Conv2d(6, 4, 1)
        self.other = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Sigmoid())
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 3.0]).view(1, 4, 1, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        gate = self.other(x)
        return self.head((y * gate * self.scale).flatten(2).mean(2))


class Transformer(nn.Module):
    """A vision transformer: class token, position embedding, pre-norm blocks."""

    def __init__(self, depth=3, dim=8):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TransformerBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.behind = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(self.behind(x).relu().mean((2, 3)))


class DeadChannels(nn.Module):
    """At ``act`` channel 0 is 0 and channel 1 is 2 everywhere; with ``all_dead`` the other channels are 0 too."""

    def __init__(self, all_dead=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.next = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            self.conv.weight[: 6 if all_dead else 2] = 0
            self.conv.bias[: 6 if all_dead else 2] = -1
            self.conv.bias[1] = 2

    def forward(self, x):
        return self.head(self.next(self.act(self.conv(x))).relu().mean((2, 3)))


def make_network(kind, batch=3, size=9):
    torch.manual_seed(3)
    module = kind().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                part.weight.data.normal_()
                part.bias.data.normal_()
    return module, torch.randn(batch, 3, size, size, dtype=torch.float64)


def count_images(module, run):
    """The number of images that pass through ``module`` during ``run()``."""
    count = 0

    def add(_module, inputs):
        nonlocal count
        count += len(inputs[0])

    handle = module.register_forward_pre_hook(add)
    run()
    handle.remove()
    return count
