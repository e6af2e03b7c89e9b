"""Comparisons of which the scores are given, and a network that is quick to compare methods on."""

from __future__ import annotations

import torch
from torch import nn

from whycam.comparison.ranking import Comparison

LAYER = "features[2]"


class Small(nn.Module):
    """Two convolutions and a linear layer, enough for every measure but cheap."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
        )
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        return 6 * self.linear(self.features(x).mean(dim=(2, 3)))


def pictures(count=6, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def normalize(images):
    return (images - 0.5) / 0.25


CHEAP = ["road", "deletion", "insertion", "adcc", "sanity"]


NOISE = [0.0, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.0]


def shifted(by, wobble=0.0):
    return [by + value + wobble * (-1) ** place for place, value in enumerate(NOISE)]


def made(scores, name="road"):
    """A comparison of which the scores are given: (method, layer) → one a unit."""
    filled = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    return Comparison({name: filled}, dict.fromkeys(filled, 0), len(next(iter(filled.values()))))
