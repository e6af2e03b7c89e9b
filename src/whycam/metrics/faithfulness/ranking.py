"""In which order pixels are removed: by a map's signed values, ties broken at random so that no share is missed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.errors import WhycamError


def removed_counts(percentiles: Sequence[float], pixels: int) -> list[int]:
    """How many of ``pixels`` each percentile removes, rounded.

    Raises:
        WhycamError: there is no percentile, or one removes nothing or everything.
    """
    if not percentiles:
        raise WhycamError("no percentile is given; 50 removes half of the pixels")
    counts = [round(pixels * percentile / 100) for percentile in percentiles]
    for percentile, count in zip(percentiles, counts, strict=True):
        if not 0 < percentile < 100 or not 0 < count < pixels:
            raise WhycamError(
                f"percentile {percentile:g} of {pixels} pixels removes {'nothing' if count <= 0 else 'everything'}: "
                "percentiles lie between 0 and 100, and some pixels have to go and some to stay"
            )
    return counts


def ranks(maps: Tensor, tie_break: Tensor) -> Tensor:
    """Each pixel's place in its map's order, 0 the lowest value: (B, H, W) → (B, H, W) int64, a permutation each.

    Args:
        maps: (B, H, W).
        tie_break: (B, H, W); of equal values the one with the lower tie-break comes first.
    """
    values, ties = maps.flatten(1), tie_break.flatten(1)
    order = ties.argsort(dim=1)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, stable=True))
    places = torch.arange(values.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def removed_pixels(ranked: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, H, W) ranks → (B, 2, P, H, W) bool: the highest ``counts`` of each image, then the lowest."""
    total = ranked[0].numel() if len(ranked) else 0
    count = torch.tensor(counts, device=ranked.device).view(1, -1, 1, 1)
    places = ranked[:, None]
    return torch.stack([places >= total - count, places < count], dim=1)
