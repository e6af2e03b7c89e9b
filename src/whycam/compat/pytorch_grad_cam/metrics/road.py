"""ROAD (Rong et al., 2022, arXiv:2202.00449): remove pixels by imputing them from their neighbors."""

from __future__ import annotations

from collections.abc import Sequence

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
    Targets,
)
from whycam.metrics.faithfulness.imputation import NEIGHBORS, Weighting, noisy_linear_imputation
from whycam.seeds import generator

neighbors_weights = NEIGHBORS


class NoisyLinearImputer:
    """Fills pixels in so that each is the weighted mean of its neighbors, plus a little noise.

    Args:
        noise: its standard deviation.
        weighting: see `whycam.metrics.faithfulness.imputation.NEIGHBORS`.
        seed: of the noise, which is the same for every image; grad-cam draws it from global state.
    """

    takes_batches = True

    def __init__(self, noise: float = 0.01, weighting: Weighting = neighbors_weights, seed: int = 0) -> None:
        self.noise = noise
        self.weighting = weighting
        self.seed = seed

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), (H, W) → (C, H, W), or a batch of each; pixels where the mask is 0 are filled in.

        An image without any known pixel becomes 0.
        """
        single = img.ndim == 3
        images, missing = (img[None], mask[None] == 0) if single else (img, mask == 0)
        nothing = missing.flatten(1).all(dim=1)[:, None, None]
        filled = noisy_linear_imputation(
            images.masked_fill(nothing[:, None], 0), missing & ~nothing, weighting=self.weighting
        )
        if self.noise:
            noise = torch.randn(images.shape[1:], generator=generator(self.seed, "NoisyLinearImputer"))
            filled = torch.where(missing[:, None], filled + self.noise * noise.to(filled), filled)
        return filled[0] if single else filled


class ROADMostRelevantFirst(PerturbationConfidenceMetric):
    """The score's change when the pixels above a percentile of the map are removed."""

    def __init__(self, percentile: float | str = 80) -> None:
        super().__init__(RemoveMostRelevantFirst(percentile, NoisyLinearImputer()))


class ROADLeastRelevantFirst(PerturbationConfidenceMetric):
    """The score's change when the pixels below a percentile of the map are removed."""

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

    def __call__(self, input_tensor: Tensor, cams: Array, targets: Targets, model: nn.Module) -> Array:
        """(B, C, H, W), (B, H, W) → (B,)."""
        least = self.lerf_averager(input_tensor, cams, targets, model)
        most = self.morf_averager(input_tensor, cams, targets, model)
        return np.asarray((least - most) / 2)
