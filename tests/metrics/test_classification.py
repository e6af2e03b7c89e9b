"""Scores of a classifier: against a slow loop, scipy and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest

from whycam.metrics import score_classification, wilson_interval
from whycam.metrics.classification import calibration_error, reliability_bins


def reference(logits, labels):
    """One image at a time, in Python floats."""
    n, k = logits.shape
    correct, loss = 0, 0.0
    confusion = [[0] * k for _ in range(k)]
    bins = [[] for _ in range(15)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(v - max(row)) for v in row)
        probabilities = [math.exp(v - max(row)) / total for v in row]
        predicted = max(range(k), key=row.__getitem__)
        confusion[label][predicted] += 1
        correct += predicted == label
        loss -= math.log(probabilities[label])
        place = next(b for b in range(15) if probabilities[predicted] <= (b + 1) / 15 or b == 14)
        bins[place].append((probabilities[predicted], predicted == label))
    ece = sum(
        len(entries) / n * abs(np.mean([p for p, _ in entries]) - np.mean([r for _, r in entries]))
        for entries in bins
        if entries
    )
    return correct, loss / n, float(ece), confusion


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 7), st.integers(0, 2**31))
def test_scores_equal_a_slow_loop(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(k, (n,), generator=generator)
    scores = score_classification(logits, labels)
    correct, loss, ece, confusion = reference(logits, labels)
    assert scores.correct == correct
    assert scores.cross_entropy == pytest.approx(loss, rel=1e-10)
    assert scores.ece == pytest.approx(ece, abs=1e-10)
    assert [list(row) for row in scores.confusion] == confusion
    assert sum(entry.n for entry in scores.reliability) == n
    values = scores.to_dict([str(i) for i in range(k)])
    assert values["errors"] == n - correct
    assert sum(row["n"] for row in values["per_class"]) == n


@pytest.mark.parametrize(
    ("confidence", "error"), [([1.0, 1.0, 1.0, 1.0], 0.5), ([1.0, 1.0, 0.0, 0.0], 0.0)], ids=["certain", "apart"]
)
def test_calibration_at_the_edges_of_the_bins(confidence, error):
    right = torch.tensor([True, True, False, False])
    assert calibration_error(reliability_bins(torch.tensor(confidence), right)) == pytest.approx(error)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    # The closed form, computed by hand to four digits.
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (8677, 10_000, (0.8609, 0.8742))],
)
def test_wilson_interval_by_hand(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_interval_equals_that_of_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-14)


def test_wilson_interval_of_no_images():
    assert wilson_interval(0, 0) == (0, 1)
