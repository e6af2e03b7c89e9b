"""Scores of a classifier: accuracy with its interval, calibration, confusion matrix, accuracy per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ECE_BINS = 15
_Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high], with their mean confidence and accuracy (None if n is 0)."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Classification:
    """Scores of a classifier on a labeled set.

    Attributes:
        n: the number of images.
        correct: the number of correctly classified images.
        cross_entropy: the mean, in nats.
        ece: expected calibration error over 15 equal bins of confidence (Guo et al., 2017, arXiv:1706.04599).
        reliability: the bins.
        confusion: K rows (actual class) of K counts (predicted class).
    """

    n: int
    correct: int
    cross_entropy: float
    ece: float
    reliability: tuple[Bin, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """The share of correctly classified images, in [0, 1]; NaN if there are no images."""
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, see `wilson_interval`."""
        return wilson_interval(self.correct, self.n)

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """The JSON form, with a row for each class."""
        rows = [
            {
                "class": name,
                "n": sum(row),
                "correct": row[index],
                "accuracy": row[index] / sum(row) if any(row) else None,
            }
            for index, (name, row) in enumerate(zip(classes, self.confusion, strict=True))
        ]
        return {
            "n": self.n,
            "correct": self.correct,
            "errors": self.n - self.correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "cross_entropy": self.cross_entropy,
            "ece": self.ece,
            "ece_bins": ECE_BINS,
            "reliability": [asdict(entry) for entry in self.reliability],
            "confusion": [list(row) for row in self.confusion],
            "per_class": rows,
        }


def score_classification(logits: Tensor, labels: Tensor) -> Classification:
    """Score (N, K) logits against (N,) labels, in float64."""
    classes = logits.shape[1]
    logits = logits.double()
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    is_correct = predicted == labels
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
    bins = reliability_bins(confidence, is_correct)
    return Classification(
        n=len(labels),
        correct=int(is_correct.sum()),
        cross_entropy=float(F.cross_entropy(logits, labels)) if len(labels) else math.nan,
        ece=calibration_error(bins),
        reliability=bins,
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )


def reliability_bins(confidence: Tensor, is_correct: Tensor, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """Sort images into equal bins of confidence; bin b is (b / bins, (b + 1) / bins].

    Args:
        confidence: (N,) probability of the predicted class.
        is_correct: (N,) bool.
        bins: the number of bins.
    """
    index = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    result = []
    for b in range(bins):
        inside = index == b
        n = int(inside.sum())
        means = (
            (float(confidence[inside].double().mean()), float(is_correct[inside].double().mean()))
            if n
            else (None, None)
        )
        result.append(Bin(b / bins, (b + 1) / bins, n, *means))
    return tuple(result)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |accuracy − confidence| of each bin, weighted by the bin's share of the images."""
    total = sum(entry.n for entry in bins)
    gaps = (
        entry.n * abs(entry.accuracy - entry.confidence)
        for entry in bins
        if entry.accuracy is not None and entry.confidence is not None
    )
    return sum(gaps) / total if total else math.nan


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson, 1927): it stays inside [0, 1] and is valid for few images."""
    if n == 0:
        return (0.0, 1.0)
    share, z2 = successes / n, _Z95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, center - half), min(1.0, center + half))
