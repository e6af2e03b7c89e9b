"""Comparisons with given scores, and a small network on which comparing methods is fast."""

from __future__ import annotations

import torch
from torch import nn

from whycam.comparison.ranking import Comparison

LAYER = "features[2]"
FAST_METRICS = ["road", "deletion", "insertion", "adcc", "sanity"]
NOISE = [0.0, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.0]


class SmallNet(nn.Module):
    """Two convolutions and a linear layer: enough for every metric."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
        )
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        return 6 * self.linear(self.features(x).mean(dim=(2, 3)))


def random_images(count=6, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def normalize(images):
    return (images - 0.5) / 0.25


def around(mean, alternating=0.0):
    """Eight scores with this mean, plus and minus ``alternating``."""
    return [mean + value + alternating * (-1) ** place for place, value in enumerate(NOISE)]


def as_tensors(scores):
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}


def comparison_of(scores, name="road"):
    """A comparison by one metric with given scores: (method, layer) → one score per image."""
    scores = as_tensors(scores)
    return Comparison({name: scores}, dict.fromkeys(scores, 0), len(next(iter(scores.values()))))
