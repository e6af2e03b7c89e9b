"""How far a mean over few images may be off, and whether it can be told from 0."""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.seeds import generator

DRAWS = 2000
_CHUNK = 4_000_000  # numbers drawn at a time: bounds the memory


def bootstrap_interval(
    values: Tensor, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron, 1979).

    With few values it is too narrow: what was not drawn into the sample cannot be drawn from it.

    Args:
        values: (n,) finite, at least two: one value says nothing of the spread.
        level: its nominal coverage.
        draws: how often ``n`` values are drawn with replacement.
        seed: the same seed draws the same places, so that equal-length columns are resampled together.

    Returns:
        (low, high).
    """
    n, draw = len(values), generator("bootstrap", seed)
    values = in_double(values).cpu()
    step = max(1, _CHUNK // n)
    means = [
        values[torch.randint(n, (min(step, draws - start), n), generator=draw)].mean(dim=1)
        for start in range(0, draws, step)
    ]
    tail = (1 - level) / 2
    low, high = torch.cat(means).quantile(values.new_tensor([tail, 1 - tail])).tolist()
    return low, high


def sign_flip_test(values: Tensor, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of the mean being 0: how often signs drawn at random leave a sum as far from 0.

    For differences of two methods on the same images: were it all the same which of the two made which map, each
    difference could as well have the other sign (Fisher, 1935). Right also for few values, for which a bootstrap
    interval is too narrow: with fewer than six, nothing falls below 5%.

    Args:
        values: (n,) finite.
        draws: how many signs are drawn for each value; where there are no more combinations than that, each is tried.
        seed: of the signs.

    Returns:
        p in (0, 1]; 1 where there are no values.
    """
    values = in_double(values).cpu()
    n, far = len(values), float(values.sum().abs()) * (1 - 1e-12)  # less what another order of summation rounds
    if 2**n <= draws:
        signs = 2 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1) - 1
        return float(((signs.to(values) @ values).abs() >= far).double().mean())
    draw, found = generator("signs", seed), 0
    step = max(1, _CHUNK // n)
    for start in range(0, draws, step):
        signs = 2 * torch.randint(2, (min(step, draws - start), n), generator=draw) - 1
        found += int(((signs.to(values) @ values).abs() >= far).sum())
    return (found + 1) / (draws + 1)
