"""How far a mean over few images may be off: bootstrap intervals."""

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
