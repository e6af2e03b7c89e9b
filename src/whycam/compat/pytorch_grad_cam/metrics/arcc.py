"""ARCC (arXiv:2605.14641): coherency, complexity and ROAD in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam.metrics.perturbation_confidence import Targets
from whycam.compat.pytorch_grad_cam.metrics.road import ROADCombined


def batch_pearson_coherency(A: Array, B: Array) -> Array:
    """(B, …), (B, …) → (B,) correlations; 0 where one is constant."""
    one, other = (values.reshape(len(values), -1) for values in (A, B))
    one, other = (values - values.mean(axis=1, keepdims=True) for values in (one, other))
    count = one.shape[1] - 1
    spreads = np.sqrt((one**2).sum(axis=1) / count) * np.sqrt((other**2).sum(axis=1) / count)
    correlation: Array = (one * other).sum(axis=1) / count / (spreads + 1e-8)
    return correlation


class Complexity:
    """The map's mean absolute value (Poppi et al., 2021, arXiv:2104.10252): lower is better."""

    def __call__(self, grayscale_cams: Array) -> Array:
        """(B, H, W) → (B,)."""
        mean: Array = np.abs(grayscale_cams.reshape(len(grayscale_cams), -1)).mean(axis=1)
        return mean


class Coherency:
    """The correlation of a map with the map of the masked image, on [0, 1] (arXiv:2104.10252)."""

    def __call__(
        self, input_tensor: Tensor, grayscale_cams: Array, targets: Targets, model: nn.Module, base_method: Any
    ) -> Array:
        """(B, C, H, W), (B, H, W) → (B,); ``base_method`` makes the second map."""
        masked = input_tensor * torch.from_numpy(grayscale_cams)[:, None].to(input_tensor.device)
        again = base_method(input_tensor=masked, targets=targets)
        return np.asarray((batch_pearson_coherency(again, grayscale_cams) + 1) / 2)


class ARCC:
    """The harmonic mean of coherency, 1 − complexity and twice ROAD on [0, 1]: higher is better.

    Args:
        base_method: the object that made the maps.
        road_percentiles: see `ROADCombined`.
    """

    def __init__(self, base_method: Any, road_percentiles: Sequence[float] = (20, 40, 60, 80)) -> None:
        self.complexity = Complexity()
        self.coherency = Coherency()
        self.road = ROADCombined(percentiles=road_percentiles)
        self.base_method = base_method

    def __call__(self, input_tensor: Tensor, grayscale_cams: Array, targets: Targets, model: nn.Module) -> Array:
        """(B, C, H, W), (B, H, W) → (B,)."""
        coherency = self.coherency(input_tensor, grayscale_cams, targets, model, self.base_method)
        simplicity = 1 - self.complexity(grayscale_cams)
        road = (self.road(input_tensor, grayscale_cams, targets, model) * 2).clip(0, 1)
        return np.asarray(3 / sum(1 / (part + 1e-8) for part in (coherency, simplicity, road)))
