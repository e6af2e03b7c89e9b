"""Bootstrap interval and sign-flip test: against scipy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from whycam.comparison.ranking import LEVEL
from whycam.metrics import bootstrap_interval
from whycam.metrics.statistics import sign_flip_test


def test_bootstrap_intervals(generator):
    values = torch.randn(400, generator=generator).double()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)
    assert bootstrap_interval(3 * values - 1) == pytest.approx((3 * low - 1, 3 * high - 1))
    assert bootstrap_interval(values, level=0.5)[0] > low
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.full((5,), 0.25)) == (0.25, 0.25)


def test_bootstrap_intervals_equal_those_of_scipy(generator):
    """Up to the random resamples: 20,000 give an end to about 2% of the interval's width."""
    values = torch.rand(30, generator=generator).double() ** 2
    expected = stats.bootstrap(
        (values.numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = bootstrap_interval(values, draws=20_000)
    tolerance = 0.02 * (high - low)
    assert (low, high) == (pytest.approx(expected.low, abs=tolerance), pytest.approx(expected.high, abs=tolerance))


@pytest.mark.parametrize("n", [2, 5, 9, 10])
def test_exact_sign_flip_tests_equal_those_of_scipy(n, generator):
    """Up to 10 values all combinations of signs are tried, as by scipy."""
    for shift in (0.0, 0.5, 1.0):
        values = torch.randn(n, generator=generator, dtype=torch.float64) + shift
        assert sign_flip_test(values) == pytest.approx(exact_p_value(values))


def test_random_sign_flip_tests_are_close_to_the_exact_ones_of_scipy(generator):
    for shift in (0.0, 0.25, 0.5):
        values = torch.randn(16, generator=generator, dtype=torch.float64) + shift
        expected = exact_p_value(values)
        four_errors = 4 * (expected * (1 - expected) / 20_000) ** 0.5
        assert sign_flip_test(values, draws=20_000) == pytest.approx(expected, abs=four_errors + 1e-4)


def exact_p_value(values):
    # scipy doubles the smaller tail, which is the same here: the distribution under sign flips is symmetric.
    return stats.permutation_test((values.numpy(),), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue


def test_sign_flip_tests_by_hand():
    six = torch.arange(1, 7, dtype=torch.float64)
    assert sign_flip_test(six) == sign_flip_test(-six) == 2 / 64
    assert sign_flip_test(six[:5]) == 2 / 32
    assert sign_flip_test(torch.tensor([3.0, 3.0, -3.0])) == 1  # ±3 is the smallest possible sum
    assert sign_flip_test(torch.zeros(40)) == 1
    assert sign_flip_test(torch.zeros(0)) == 1
    many = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert sign_flip_test(many + 1) == 1 / 2001
    # Compare with a t-test: t = 2 with 39 degrees of freedom has the two-sided p-value 0.0525.
    shifted = many - many.mean() + 2 * many.std() / 40**0.5
    assert sign_flip_test(shifted, draws=100_000) == pytest.approx(0.0525, abs=0.005)


@pytest.mark.parametrize("n", [3, 6, 8, 20])
def test_the_sign_flip_test_rejects_a_true_hypothesis_in_at_most_5_percent(n):
    draw = torch.Generator().manual_seed(n)
    differences = torch.randn(800, n, generator=draw, dtype=torch.float64)
    found = sum(sign_flip_test(row, draws=500) <= LEVEL for row in differences) / len(differences)
    assert found <= LEVEL + 2.5 * (LEVEL * (1 - LEVEL) / len(differences)) ** 0.5
    if n > 6:
        assert found > LEVEL / 2
