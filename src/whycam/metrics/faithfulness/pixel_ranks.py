"""The order in which pixels are removed: by signed map value, with ties in random order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.errors import WhycamError


def removed_counts(percentiles: Sequence[float], pixels: int) -> list[int]:
    """How many of ``pixels`` each percentile removes, rounded.

    Raises:
        WhycamError: there is no percentile, or one removes no pixel or every pixel.
    """
    if not percentiles:
        raise WhycamError("no percentile is given; 50 removes half of the pixels")
    counts = [round(pixels * percentile / 100) for percentile in percentiles]
    for percentile, count in zip(percentiles, counts, strict=True):
        if not 0 < percentile < 100 or not 0 < count < pixels:
            raise WhycamError(
                f"percentile {percentile:g} of {pixels} pixels removes {'nothing' if count <= 0 else 'everything'}: "
                "give a percentile between 0 and 100 that removes some pixels and keeps some"
            )
    return counts


def ranks(maps: Tensor, tie_break: Tensor) -> Tensor:
    """The rank of each pixel in its map, 0 for the lowest value: (B, H, W) → (B, H, W) int64, a permutation per map.

    Args:
        maps: (B, H, W).
        tie_break: (B, H, W); among equal values, the one with the lower tie-break has the lower rank.
    """
    values, ties = maps.flatten(1), tie_break.flatten(1)
    order = ties.argsort(dim=1)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, stable=True))
    positions = torch.arange(values.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).view_as(maps)


def removed_pixels(ranked: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, H, W) ranks → (B, 2, P, H, W) bool: the ``counts`` highest pixels of each image, then the lowest."""
    total = ranked[0].numel() if len(ranked) else 0
    count = torch.tensor(counts, device=ranked.device).view(1, -1, 1, 1)
    ranked = ranked[:, None]
    return torch.stack([ranked >= total - count, ranked < count], dim=1)
