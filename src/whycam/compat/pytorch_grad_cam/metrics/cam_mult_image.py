"""The score of the image times its map."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam.metrics.perturbation_confidence import PerturbationConfidenceMetric


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """(C, H, W), normalized, times (H, W): gray where the map is 0."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    """The change of the score when the image is multiplied by its map."""

    def __init__(self) -> None:
        super().__init__(multiply_tensor_with_cam)


class DropInConfidence(CamMultImageConfidenceChange):
    """The drop of the score; 0 where it rises."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """See `PerturbationConfidenceMetric.__call__`."""
        return np.asarray(np.maximum(-super().__call__(*args, **kwargs), 0))


class IncreaseInConfidence(CamMultImageConfidenceChange):
    """1 where the score rises, else 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """See `PerturbationConfidenceMetric.__call__`."""
        return np.asarray(super().__call__(*args, **kwargs) > 0).astype(np.float32)
