"""How alike two maps are: in their values, in the order of their values, in their structure.

All compare (B, h, w) with (B, h, w) pair by pair, in float64, and return (B,) float64 (on the CPU where the maps' own
device has none). A pair of which one map holds NaN or infinity scores NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.device import in_double
from whycam.errors import WhycamError

_K1, _K2 = 0.01, 0.03  # the paper's constants, in units of the span


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of two maps' values, in [−1, 1].

    Args:
        one: (B, h, w).
        other: (B, h, w).

    Returns:
        (B,) float64; NaN where a map is constant, for then it is undefined.

    Raises:
        WhycamError: the shapes do not belong together.
    """
    one, other = _pairs(one, other)
    return _correlation(one.flatten(1), other.flatten(1))


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of two maps' ranks, in [−1, 1]; equal values share the mean of the ranks they occupy.

    Args:
        one: (B, h, w).
        other: (B, h, w).

    Returns:
        (B,) float64; NaN where a map is constant, for then it is undefined.

    Raises:
        WhycamError: the shapes do not belong together.
    """
    one, other = _pairs(one, other)
    return _correlation(_average_ranks(one.flatten(1)), _average_ranks(other.flatten(1)))


def ssim(one: Tensor, other: Tensor, *, window: int = 7, span: float | None = None) -> Tensor:
    """Structural similarity: local means, variances and covariance compared, at most 1, which equal maps have.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Transactions on Image
    Processing 2004; with a square window of equal weights and sample covariances, averaged over the windows that lie
    inside the map.

    Args:
        one: (B, h, w).
        other: (B, h, w).
        window: the square's side, in cells.
        span: the range that values can have, 1 for heatmaps; by default each pair's largest value less its smallest.

    Returns:
        (B,) float64.

    Raises:
        WhycamError: the shapes do not belong together, the window is smaller than 2 or larger than the map, or the span
            is not a positive number.
    """
    both = torch.stack(_pairs(one, other), dim=1)
    side = min(both.shape[2:])
    if not 2 <= window <= side:
        raise WhycamError(f"window must be from 2 cells to the map's shorter side, here {side}, got {window}")
    if span is not None and not 0 < span < math.inf:
        raise WhycamError(f"span is the range that values can have, a number above 0, got {span}")
    flat = both.flatten(1)
    reach = flat.amax(dim=1) - flat.amin(dim=1) if span is None else flat.new_full((len(flat),), span)
    # The index is the same in any unit; with the span as the unit no square can vanish. Where it is 0, so are all
    # differences, and any unit does.
    both = both / reach.masked_fill(reach == 0, 1).view(-1, 1, 1, 1)
    c1, c2 = _K1**2, _K2**2
    mean_one, mean_other = F.avg_pool2d(both, window, stride=1).unbind(dim=1)
    # Moments about the map's mean instead of 0, so that less cancels.
    x, y = (both - both.mean(dim=(2, 3), keepdim=True)).unbind(dim=1)
    moments = torch.stack([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, xx, yy, xy = F.avg_pool2d(moments, window, stride=1).unbind(dim=1)
    sample = window**2 / (window**2 - 1)
    variances = sample * (xx - mean_x**2 + yy - mean_y**2)
    covariance = sample * (xy - mean_x * mean_y)
    alike = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
    alike = alike * (2 * covariance + c2) / (variances + c2)
    return alike.flatten(1).mean(dim=1)


def _pairs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, NaN throughout where either of a pair is not finite."""
    if one.ndim != 3 or one.shape != other.shape or 0 in one.shape[1:]:
        raise WhycamError(
            f"maps are compared pair by pair, (B, h, w) with (B, h, w), got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    one, other = in_double(one), in_double(other.to(one.device))
    broken = ~(one.isfinite() & other.isfinite()).flatten(1).all(dim=1)[:, None, None]
    return one.masked_fill(broken, torch.nan), other.masked_fill(broken, torch.nan)


def _average_ranks(values: Tensor) -> Tensor:
    """(B, n) → (B, n) from 0; NaN stays NaN."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values.contiguous()
    first, end = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return torch.where(values.isnan(), values, (first + end - 1).to(values) / 2)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Rows with rows."""
    return (_directions(one) * _directions(other)).sum(dim=1).clamp(-1, 1)


def _directions(values: Tensor) -> Tensor:
    """Each row less its mean, of length 1; NaN where it is constant."""
    constant = values.amin(dim=1, keepdim=True) == values.amax(dim=1, keepdim=True)
    centered = values - values.mean(dim=1, keepdim=True)
    centered = centered / centered.abs().amax(dim=1, keepdim=True)  # squares neither vanish nor overflow
    # A constant row less its mean is rounding, not always 0.
    length = torch.linalg.vector_norm(centered, dim=1, keepdim=True)
    return centered.div(length).masked_fill(constant, torch.nan)
