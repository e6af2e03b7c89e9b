"""What a map looks like, whatever the network: how much of the image it lights up, and how evenly.

None of it says whether the map is right: a single bright cell in the wrong place is simple and sparse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.errors import WhycamError


def complexity(heat: Tensor) -> Tensor:
    """The mean of a heatmap: how much of the image it lights up, lower is better.

    Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", CVPR workshops 2021
    (arXiv:2104.10252): of two maps that explain a decision equally well, the one that shows less is preferred. A map of
    zeros has the least, which is why this is no score by itself (see `whycam.metrics.robustness.coherency.adcc`).

    Args:
        heat: (B, H, W) in [0, 1], as `whycam.cam.maps.heatmaps` makes them.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        WhycamError: not (B, H, W), or not in [0, 1].
    """
    _check(heat)
    low, high = (float(heat.min()), float(heat.max())) if heat.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise WhycamError(
            f"complexity is that of heatmaps in [0, 1], got values from {low:g} to {high:g}: raw maps have a unit of "
            "their own, so scale them with whycam.cam.maps.heatmaps first"
        )
    return in_double(heat).flatten(1).mean(dim=1)


def sparseness(maps: Tensor) -> Tensor:
    """The Gini index of |map|: 0 where it is spread evenly, near 1 where all is in one place.

    Chalasani et al., "Concise explanations of neural networks using adversarial training", ICML 2020
    (arXiv:1810.06583). With all in one of n cells it is 1 − 1/n, so compare maps of one size only.

    Args:
        maps: (B, h, w) signed.

    Returns:
        (B,) float64 in [0, 1); 0 for a map of zeros, NaN for one that is not finite.

    Raises:
        WhycamError: not (B, h, w).
    """
    size = _magnitudes(maps).sort(dim=1).values
    cells = size.shape[1]
    # Twice the rank from 1, less what makes the weights sum to 0: equal values give exactly 0.
    weights = 2 * torch.arange(1, cells + 1, device=size.device) - cells - 1
    return (size * weights).sum(dim=1) / (cells * size.sum(dim=1)).clamp(min=1)


def entropy(maps: Tensor) -> Tensor:
    """The entropy of |map| as shares of its sum, over the largest possible: 1 where it is spread evenly, 0 in one cell.

    Bhatt et al., "Evaluating and aggregating feature-based model explanations", IJCAI 2020 (arXiv:2005.00631), who call
    it complexity; here divided by the logarithm of the number of cells.

    Args:
        maps: (B, h, w) signed.

    Returns:
        (B,) float64 in [0, 1]; NaN for a map of zeros or of a single cell, and for one that is not finite.

    Raises:
        WhycamError: not (B, h, w).
    """
    size = _magnitudes(maps)
    shares = size / size.sum(dim=1, keepdim=True)
    cells = shares.shape[1]
    most = math.log(cells) if cells > 1 else math.nan
    surprise: Tensor = torch.special.entr(shares)  # −p log p, 0 at 0
    return surprise.sum(dim=1).div(most).clamp(max=1)


def _magnitudes(maps: Tensor) -> Tensor:
    """(B, h, w) → (B, n) float64 of which the largest is 1, so that no sum vanishes or overflows; zeros stay zeros."""
    _check(maps)
    size = in_double(maps).abs().flatten(1)
    top = size.amax(dim=1, keepdim=True)
    return size / top.masked_fill(top == 0, 1)


def _check(maps: Tensor) -> None:
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise WhycamError(f"maps must be (B, h, w), got {tuple(maps.shape)}")
