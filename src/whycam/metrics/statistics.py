"""How uncertain a mean over few images is: an interval, and a test whether the mean differs from 0.

Both run on torch, without scipy, so that `whycam.compare` needs torch and numpy only. Their generators are seeded, and
the published figures depend on the draws. Tests compare both with ``scipy.stats``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.seeds import generator

DRAWS = 2000
_CHUNK = 4_000_000  # random numbers drawn at once; limits memory


def bootstrap_interval(
    values: Tensor, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron, 1979).

    For few values the interval is too narrow, because a resample holds only values that the sample holds.

    Args:
        values: (n,) finite, at least two: one value has no spread.
        level: the nominal coverage.
        draws: the number of resamples of ``n`` values, drawn with replacement.
        seed: the same seed draws the same positions, so that columns of equal length are resampled together.

    Returns:
        (low, high).
    """
    n, draw = len(values), generator("bootstrap", seed)
    values = in_double(values).cpu()
    means = torch.cat([values[torch.randint(n, (rows, n), generator=draw)].mean(dim=1) for rows in _chunks(draws, n)])
    tail = (1 - level) / 2
    low, high = means.quantile(values.new_tensor([tail, 1 - tail])).tolist()
    return low, high


def sign_flip_test(values: Tensor, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The two-sided p-value of the hypothesis that the mean is 0, by flipping signs at random (Fisher, 1935).

    Use it for the differences of two methods on the same images: if the methods do not differ, each difference is as
    likely to have the other sign. The p-value is the share of sign combinations whose sum is at least as far from 0 as
    the observed sum. The test is exact for few values, where a bootstrap interval is too narrow. With fewer than six
    values, p is never below 5%.

    Args:
        values: (n,) finite.
        draws: the number of random sign combinations; all combinations are tried if there are at most this many.
        seed: seeds the signs.

    Returns:
        p in (0, 1]; 1 if there are no values.
    """
    values = in_double(values).cpu()
    n, observed = len(values), float(values.sum().abs()) * (1 - 1e-12)  # tolerates rounding in the order of summation
    if 2**n <= draws:
        signs = 2 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1) - 1
        return float(((signs.to(values) @ values).abs() >= observed).double().mean())
    draw, as_far = generator("signs", seed), 0
    for rows in _chunks(draws, n):
        signs = 2 * torch.randint(2, (rows, n), generator=draw) - 1
        as_far += int(((signs.to(values) @ values).abs() >= observed).sum())
    return (as_far + 1) / (draws + 1)


def _chunks(draws: int, n: int) -> Iterator[int]:
    """Sizes that add up to ``draws``, so that a chunk of rows of n numbers fits the memory limit."""
    step = max(1, _CHUNK // n)
    for start in range(0, draws, step):
        yield min(step, draws - start)
