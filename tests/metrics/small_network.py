"""A small network with parts of every kind to reinitialize, and helpers that tell which tensors changed."""

from __future__ import annotations

import torch
from torch import nn

PARTS = ["head", "blocks.1", "blocks.0", "norm", "stem", "Net"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.5))

    def forward(self, x):
        return x + self.scale * self.norm(self.conv(x)).relu()


class Net(nn.Module):
    """The blocks own a constant parameter, the network itself owns a parameter, and ``act`` owns none."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.linspace(0.5, 1.5, 36).view(1, 6, 6))
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(self.act(self.norm(self.stem(x * self.mask)))).mean((2, 3)))


def trained():
    """A network whose BatchNorms differ from their initial state, as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
    return model.eval()


def random_images(count=3, side=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    """The names of the tensors that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def within(part, names):
    """The names that belong to a part."""
    return {name for name in names if name == "mask"} if part == "Net" else {n for n in names if n.startswith(part)}
