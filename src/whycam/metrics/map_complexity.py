"""Complexity, sparseness and entropy: how much of the image a map highlights, and how evenly.

These metrics need no network, and they do not tell whether a map is right: a single bright cell in the wrong place is
simple and sparse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import check_map_shape, value_range


def complexity(heat: Tensor) -> Tensor:
    """The mean of a heatmap: how much of the image it highlights. Lower is better.

    Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", CVPR workshops 2021
    (arXiv:2104.10252): of two maps that explain a decision equally well, the simpler one is better. A map of zeros has
    the lowest complexity, so use this score only together with others (see `whycam.metrics.adcc`).

    Args:
        heat: (B, H, W) in [0, 1], from `whycam.cam.maps.heatmaps`.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        WhycamError: not (B, H, W), or not in [0, 1].
    """
    check_map_shape(heat)
    low, high = value_range(heat)
    if not (low >= 0 and high <= 1):  # a comparison with NaN is false
        raise WhycamError(
            f"complexity needs heatmaps in [0, 1], got values from {low:g} to {high:g}: raw maps have arbitrary units, "
            "so scale them with whycam.cam.maps.heatmaps first"
        )
    return in_double(heat).flatten(1).mean(dim=1)


def sparseness(maps: Tensor) -> Tensor:
    """The Gini index of |map|: 0 for an even map, near 1 if a single cell holds everything.

    Chalasani et al., "Concise explanations of neural networks using adversarial training", ICML 2020
    (arXiv:1810.06583). The maximum for n cells is 1 − 1/n, so compare only maps of the same size.

    Args:
        maps: (B, h, w) signed.

    Returns:
        (B,) float64 in [0, 1); 0 for a map of zeros, NaN for a map that is not finite.

    Raises:
        WhycamError: not (B, h, w).
    """
    size = _magnitudes(maps).sort(dim=1).values
    cells = size.shape[1]
    # Ranks from 1, doubled and centered: the weights sum to 0, so equal values give exactly 0.
    weights = 2 * torch.arange(1, cells + 1, device=size.device) - cells - 1
    return (size * weights).sum(dim=1) / (cells * size.sum(dim=1)).clamp(min=1)


def entropy(maps: Tensor) -> Tensor:
    """The normalized entropy of |map|: 1 for an even map, 0 if a single cell holds everything.

    Bhatt et al., "Evaluating and aggregating feature-based model explanations", IJCAI 2020 (arXiv:2005.00631), call it
    complexity. The entropy is that of each cell's share of the sum, divided by the logarithm of the number of cells.

    Args:
        maps: (B, h, w) signed.

    Returns:
        (B,) float64 in [0, 1]; NaN for a map of zeros, of a single cell, or that is not finite.

    Raises:
        WhycamError: not (B, h, w).
    """
    size = _magnitudes(maps)
    shares = size / size.sum(dim=1, keepdim=True)
    cells = shares.shape[1]
    maximum = math.log(cells) if cells > 1 else math.nan
    terms: Tensor = torch.special.entr(shares)  # −p log p, 0 at 0
    return terms.sum(dim=1).div(maximum).clamp(max=1)


def _magnitudes(maps: Tensor) -> Tensor:
    """(B, h, w) → (B, n) float64 |map| with maximum 1, so that no sum underflows or overflows; zeros stay zeros."""
    check_map_shape(maps)
    size = in_double(maps).abs().flatten(1)
    top = size.amax(dim=1, keepdim=True)
    return size / top.masked_fill(top == 0, 1)
