"""Small networks with the habits that trip explanation tools up."""

from __future__ import annotations

from torch import nn


class InPlace(nn.Module):
    """A layer whose output the next one overwrites, twice."""

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
    """Returns its logits beside something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        features = self.conv(x).relu()
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class Raises(nn.Module):
    """Fails behind the layer that is looked at."""

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
    """Holds one layer that never runs and one whose output leads nowhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.idle = nn.Conv2d(3, 6, 3)
        self.dead_end = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        self.dead_end(x)
        return self.conv(x).mean((2, 3))
