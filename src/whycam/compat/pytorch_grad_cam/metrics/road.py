"""ROAD (Rong et al., 2022, arXiv:2202.00449): remove pixels by filling them in from their surroundings, and debias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam.metrics.perturbation_confidence import (
    DECILES,
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from whycam.device import in_double
from whycam.seeds import generator

Weights = Sequence[tuple[tuple[int, int], float]]

neighbors_weights: Weights = [
    ((down, across), 1 / 6 if down == 0 or across == 0 else 1 / 12)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
]
"""How much each neighbour counts: ((rows, columns) away, weight); the same in opposite directions."""


class NoisyLinearImputer:
    """Fills pixels in so that each is the weighted mean of its neighbours, plus a little noise.

    Args:
        noise: its standard deviation.
        weighting: see `neighbors_weights`.
        seed: of the noise, which is drawn anew but equally for every image; grad-cam draws from global state.
    """

    takes_batches = True

    def __init__(self, noise: float = 0.01, weighting: Weights = neighbors_weights, seed: int = 0) -> None:
        self.noise = noise
        self.weighting = weighting
        self.seed = seed

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), (H, W) → (C, H, W), or a batch of each; pixels where the mask is 0 are filled in."""
        single = img.ndim == 3
        images, missing = (img[None], mask[None] == 0) if single else (img, mask == 0)
        precise = in_double(images)
        filled = filled_in(precise, missing.to(precise.device), self.weighting).to(images)
        if self.noise:
            noise = torch.randn(images.shape[1:], generator=generator(self.seed, "NoisyLinearImputer"))
            filled = torch.where(missing[:, None], filled + self.noise * noise.to(filled), filled)
        return filled[0] if single else filled


def filled_in(images: Tensor, missing: Tensor, weighting: Weights, tolerance: float = 1e-8) -> Tensor:
    """Solve for the missing pixels: (B, C, H, W), (B, H, W) → (B, C, H, W).

    The system is symmetric and positive definite, and its matrix is a small stencil: conjugate gradients on the grid
    need neither a sparse matrix nor a factorisation, and take all images at once. An image without any known pixel
    becomes 0.
    """
    unknown = missing[:, None].to(images)

    def mixed(values: Tensor) -> Tensor:
        """Each pixel's neighbours, weighted; nothing lies outside the image."""
        total = torch.zeros_like(values)
        for (down, across), weight in weighting:
            (top, bottom), (left, right) = _both_inside(values.shape[-2], down), _both_inside(values.shape[-1], across)
            there = values[..., top + down : bottom + down, left + across : right + across]
            total[..., top:bottom, left:right].add_(there, alpha=weight)
        return total

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(dim=(2, 3), keepdim=True)

    # A pixel at the edge has fewer neighbours, so these count for more.
    diagonal = mixed(torch.ones_like(unknown))
    residual = mixed(images * (1 - unknown)) * unknown
    solution = torch.zeros_like(residual)
    direction = residual / diagonal
    power = dot(residual, direction)
    goal = (tolerance**2 * power).clamp(min=torch.finfo(power.dtype).tiny)
    for _ in range(10 * sum(images.shape[2:]) + 100):
        going = power > goal
        if not bool(going.any()):
            break
        applied = (diagonal * direction - mixed(direction)) * unknown
        step = torch.where(going, power / torch.where(going, dot(direction, applied), 1), 0)
        solution += step * direction
        residual -= step * applied
        preconditioned = residual / diagonal
        new = dot(residual, preconditioned)
        direction = preconditioned + torch.where(going, new / torch.where(going, power, 1), 0) * direction
        power = torch.where(going, new, power)
    return torch.where(missing[:, None], solution, images)


def _both_inside(length: int, step: int) -> tuple[int, int]:
    """Where along an axis a place and the one ``step`` further both exist."""
    return max(-step, 0), length - max(step, 0)


class ROADMostRelevantFirst(PerturbationConfidenceMetric):
    """The score's change when what lies above a percentile is removed."""

    def __init__(self, percentile: float | str = 80) -> None:
        super().__init__(RemoveMostRelevantFirst(percentile, NoisyLinearImputer()))


class ROADLeastRelevantFirst(PerturbationConfidenceMetric):
    """The score's change when what lies below is removed."""

    def __init__(self, percentile: float | str = 20) -> None:
        super().__init__(RemoveLeastRelevantFirst(percentile, NoisyLinearImputer()))


class ROADMostRelevantFirstAverage(AveragerAcrossThresholds):
    """`ROADMostRelevantFirst` over percentiles."""

    def __init__(self, percentiles: Sequence[float] = DECILES) -> None:
        super().__init__(ROADMostRelevantFirst, percentiles)


class ROADLeastRelevantFirstAverage(AveragerAcrossThresholds):
    """`ROADLeastRelevantFirst` over percentiles."""

    def __init__(self, percentiles: Sequence[float] = DECILES) -> None:
        super().__init__(ROADLeastRelevantFirst, percentiles)


class ROADCombined:
    """Half the difference of the two averages: higher is better."""

    def __init__(self, percentiles: Sequence[float] = DECILES) -> None:
        self.percentiles = percentiles
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles)

    def __call__(
        self, input_tensor: Tensor, cams: Array, targets: Sequence[Callable[..., Any]], model: nn.Module
    ) -> Array:
        """(B, C, H, W), (B, H, W) → (B,)."""
        least = self.lerf_averager(input_tensor, cams, targets, model)
        most = self.morf_averager(input_tensor, cams, targets, model)
        return np.asarray((least - most) / 2)
