"""Coherency, and the scores ADCC and ARCC that combine it with complexity and faithfulness.

Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", CVPR workshops 2021
(arXiv:2104.10252).
"""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.maps import finite, heatmaps
from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import Explain, check_images, check_maps, maps_from
from whycam.metrics.map_similarity import pearson

_ROUNDING = 1e-6  # of numbers that lie in [0, 1] by definition


def coherency(explain: Explain, images: Tensor, maps: Tensor) -> Tensor:
    """How similar a map is to the map of the image that it masks: higher is better.

    The image is multiplied by its heatmap (it turns black where the heatmap is 0) and explained again. A method that
    found the relevant region should find it again. The score is (correlation of the two heatmaps + 1) / 2.

    Args:
        explain: the function that made ``maps``, see `whycam.metrics.checks.Explain`.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size.

    Returns:
        (B,) float64 in [0, 1]. ½, the score of unrelated maps, where the correlation is undefined: one of the two
        heatmaps is zero or constant, or the new map is not finite.

    Raises:
        WhycamError: the shapes do not match, an image lies outside [0, 1], a map is not finite, or ``explain`` does not
            return maps.
    """
    check_images(images)
    check_maps(maps, images)
    size = images.shape[2:]
    heat = heatmaps(maps.detach().to(images.device), size)
    masked = images * heat[:, None].to(images)
    second = maps_from(explain, masked).to(images.device)
    correlation = pearson(heat, heatmaps(second, size))
    return (torch.where(finite(second).to(correlation.device), correlation, 0).nan_to_num(nan=0.0) + 1) / 2


def adcc(drop: Tensor, complexity: Tensor, coherency: Tensor) -> Tensor:
    """ADCC, one score of three: the harmonic mean of 1 − average drop, 1 − complexity and coherency.

    Args:
        drop: (B,) in [0, 1]: the share of its score that the class loses on the image times its heatmap, see
            `whycam.metrics.ConfidenceChange.drop`.
        complexity: (B,) in [0, 1], see `whycam.metrics.map_complexity.complexity`.
        coherency: (B,) in [0, 1].

    Returns:
        (B,) float64 in [0, 1], higher is better: 0 where one of the three parts is 0, NaN where one is NaN.

    Raises:
        WhycamError: the arguments are not (B,) each, or lie outside [0, 1].
    """
    _check(drop=drop, complexity=complexity, coherency=coherency)
    _check_range("drop", drop)
    return _harmonic_mean(1 - in_double(drop), 1 - in_double(complexity), in_double(coherency))


def arcc(road_combined: Tensor, complexity: Tensor, coherency: Tensor) -> Tensor:
    """ARCC: ADCC with ROAD instead of the drop, so that pixels are imputed and not darkened (arXiv:2605.14641).

    Twice ROAD's combined score replaces 1 − drop; values below 0 count as 0.

    Args:
        road_combined: (B,) `whycam.metrics.Road.combined` of softmax probabilities, in [−½, ½].
        complexity: (B,) in [0, 1], see `whycam.metrics.map_complexity.complexity`.
        coherency: (B,) in [0, 1].

    Returns:
        (B,) float64 in [0, 1], higher is better: 0 where one of the three parts is 0, NaN where one is NaN.

    Raises:
        WhycamError: the arguments are not (B,) each, or lie outside [0, 1] and [−½, ½].
    """
    _check(road_combined=road_combined, complexity=complexity, coherency=coherency)
    _check_range("road_combined", road_combined, -0.5, 0.5)
    return _harmonic_mean(2 * in_double(road_combined), 1 - in_double(complexity), in_double(coherency))


def _harmonic_mean(*parts: Tensor) -> Tensor:
    """Of numbers in [0, 1], up to rounding; 0 where one is 0, because its reciprocal is infinite."""
    return len(parts) / torch.stack([part.clamp(0, 1).reciprocal() for part in parts]).sum(dim=0)


def _check(**parts: Tensor) -> None:
    if len({part.shape for part in parts.values()}) > 1 or any(part.ndim != 1 for part in parts.values()):
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise WhycamError(f"the parts must be (B,) each, one number per image, got {shapes}")
    for name in ("complexity", "coherency"):
        _check_range(name, parts[name])


def _check_range(name: str, part: Tensor, low: float = 0, high: float = 1) -> None:
    outside = part[(part < low - _ROUNDING) | (part > high + _ROUNDING)]  # NaN is allowed
    if len(outside):
        raise WhycamError(f"{name} must lie between {low:g} and {high:g}, got {float(outside[0]):g}")
