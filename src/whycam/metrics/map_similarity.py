"""Similarity of two maps: correlation of values, correlation of ranks, structural similarity.

Each function compares (B, h, w) with (B, h, w) pair by pair in float64 and returns (B,) float64. The result is on the
CPU if the maps' device has no float64. If one map of a pair holds NaN or infinity, the score is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.device import in_double
from whycam.errors import WhycamError

_K1, _K2 = 0.01, 0.03  # the constants of the paper, relative to the span


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of the values of two maps, in [−1, 1].

    Args:
        one: (B, h, w).
        other: (B, h, w).

    Returns:
        (B,) float64; NaN where a map is constant, because the correlation is then undefined.

    Raises:
        WhycamError: the shapes do not match.
    """
    one, other = _pairs(one, other)
    return _correlation(one.flatten(1), other.flatten(1))


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps, in [−1, 1]; equal values share the mean of their ranks.

    Args:
        one: (B, h, w).
        other: (B, h, w).

    Returns:
        (B,) float64; NaN where a map is constant, because the correlation is then undefined.

    Raises:
        WhycamError: the shapes do not match.
    """
    one, other = _pairs(one, other)
    return _correlation(_average_ranks(one.flatten(1)), _average_ranks(other.flatten(1)))


def ssim(one: Tensor, other: Tensor, *, window: int = 7, span: float | None = None) -> Tensor:
    """Structural similarity (SSIM) of local means, variances and covariances: at most 1, the score of equal maps.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Transactions on Image
    Processing 2004. The window is square with equal weights, covariances are sample covariances, and the score is the
    mean over all windows inside the map.

    Args:
        one: (B, h, w).
        other: (B, h, w).
        window: the side of the square, in cells.
        span: the range of possible values, 1 for heatmaps; by default the largest value of a pair minus its smallest.

    Returns:
        (B,) float64.

    Raises:
        WhycamError: the shapes do not match, the window is smaller than 2 or larger than the map, or the span is not a
            positive number.
    """
    both = torch.stack(_pairs(one, other), dim=1)
    side = min(both.shape[2:])
    if not 2 <= window <= side:
        raise WhycamError(f"window must be from 2 cells to the map's shorter side, here {side}, got {window}")
    if span is not None and not 0 < span < math.inf:
        raise WhycamError(f"span is the range of possible values, a number above 0, got {span}")
    flat = both.flatten(1)
    unit = flat.amax(dim=1) - flat.amin(dim=1) if span is None else flat.new_full((len(flat),), span)
    # The index does not depend on the unit of the values. With the span as the unit, no square underflows. Where the
    # span is 0, all differences are 0, and any unit will do.
    both = both / unit.masked_fill(unit == 0, 1).view(-1, 1, 1, 1)
    c1, c2 = _K1**2, _K2**2
    mean_one, mean_other = F.avg_pool2d(both, window, stride=1).unbind(dim=1)
    # Moments about the map's mean instead of 0 reduce cancellation.
    x, y = (both - both.mean(dim=(2, 3), keepdim=True)).unbind(dim=1)
    moments = torch.stack([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, xx, yy, xy = F.avg_pool2d(moments, window, stride=1).unbind(dim=1)
    sample = window**2 / (window**2 - 1)
    variances = sample * (xx - mean_x**2 + yy - mean_y**2)
    covariance = sample * (xy - mean_x * mean_y)
    index = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
    index = index * (2 * covariance + c2) / (variances + c2)
    return index.flatten(1).mean(dim=1)


def _pairs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in float64; every value of a pair is NaN if either map is not finite."""
    if one.ndim != 3 or one.shape != other.shape or 0 in one.shape[1:]:
        raise WhycamError(
            f"maps are compared pair by pair, (B, h, w) with (B, h, w), got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    one, other = in_double(one), in_double(other.to(one.device))
    broken = ~(one.isfinite() & other.isfinite()).flatten(1).all(dim=1)[:, None, None]
    return one.masked_fill(broken, torch.nan), other.masked_fill(broken, torch.nan)


def _average_ranks(values: Tensor) -> Tensor:
    """(B, n) values → (B, n) ranks from 0, the mean rank for ties; NaN stays NaN."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values.contiguous()
    first, end = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return torch.where(values.isnan(), values, (first + end - 1).to(values) / 2)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of each row with the same row of the other."""
    return (_unit_vectors(one) * _unit_vectors(other)).sum(dim=1).clamp(-1, 1)


def _unit_vectors(values: Tensor) -> Tensor:
    """Each row minus its mean, scaled to length 1; NaN where the row is constant."""
    constant = values.amin(dim=1, keepdim=True) == values.amax(dim=1, keepdim=True)
    centered = values - values.mean(dim=1, keepdim=True)
    centered = centered / centered.abs().amax(dim=1, keepdim=True)  # so that squares neither underflow nor overflow
    # Rounding can make a constant row minus its mean nonzero, so it is masked explicitly.
    length = torch.linalg.vector_norm(centered, dim=1, keepdim=True)
    return centered.div(length).masked_fill(constant, torch.nan)
