"""The change of the target's score when the image is perturbed as a map says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array, to_numpy
from whycam.compat.pytorch_grad_cam._passes import outputs

Perturbation = Callable[[Tensor, Tensor], Tensor]
Imputer = Perturbation
Targets = Sequence[Callable[..., Any]]
DECILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class PerturbationConfidenceMetric:
    """The score after a perturbation minus the score before.

    Args:
        perturbation: (image (C, H, W), map (H, W)) → image, both on the CPU.
    """

    def __init__(self, perturbation: Perturbation) -> None:
        self.perturbation = perturbation

    def __call__(
        self,
        input_tensor: Tensor,
        cams: Array,
        targets: Targets,
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """Compute the metric.

        Args:
            input_tensor: (B, C, H, W).
            cams: (B, H, W).
            targets: one per image; each may return several numbers.
            model: run in eval mode and left as it was.
            return_visualization: the changed images too.
            return_diff: False for the score after the change alone.

        Returns:
            (B,), or (B, …) as the targets have it; with the changed images where they are asked for.
        """
        changed = self.perturbed(input_tensor, cams)
        result = scores(model, changed, targets)
        if return_diff:
            result = result - scores(model, input_tensor, targets)
        return (result, changed) if return_visualization else result

    def perturbed(self, input_tensor: Tensor, cams: Array) -> Tensor:
        """(B, C, H, W), changed."""
        images = input_tensor.detach().cpu()
        if type(self.perturbation) in (RemoveMostRelevantFirst, RemoveLeastRelevantFirst):
            return self.perturbation(images, torch.from_numpy(cams)).to(input_tensor.device)
        changed = [self.perturbation(image, torch.from_numpy(cam)) for image, cam in zip(images, cams, strict=True)]
        return torch.stack(changed).to(input_tensor.device)


class RemoveMostRelevantFirst:
    """Hides the pixels above a percentile of the map.

    Args:
        percentile: of the map's values, or "auto" for Otsu's threshold.
        imputer: (image, mask) → image, where the mask is 1 for what stays and 0 for what is filled in.
    """

    def __init__(self, percentile: float | str, imputer: Imputer) -> None:
        self.percentile = percentile
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), (H, W) → (C, H, W), or a batch of each."""
        values = mask.cpu().numpy()
        if self.percentile == "auto":
            levels = np.uint8(values * 255).reshape(-1, *values.shape[-2:])
            kept = 255 * np.stack([image > otsu(image) for image in levels]).reshape(values.shape).astype(np.float32)
        else:
            bound = np.percentile(values, float(self.percentile), axis=(-2, -1), keepdims=True)
            kept = (values < bound).astype(np.float32)
        masks = torch.from_numpy(kept).to(mask.device)
        if mask.ndim == 2 or getattr(self.imputer, "takes_batches", False):
            return self.imputer(input_tensor, masks)
        return torch.stack([self.imputer(image, one) for image, one in zip(input_tensor, masks, strict=True)])


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Hides the pixels below a percentile: `RemoveMostRelevantFirst` with 1 − map."""

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), (H, W) → (C, H, W), or a batch of each."""
        return super().__call__(input_tensor, 1 - mask)


class AveragerAcrossThresholds:
    """The mean of a metric over percentiles; the unchanged image is scored once.

    Args:
        imputer: percentile → metric.
        percentiles: which.
    """

    def __init__(self, imputer: Callable[[float], Any], percentiles: Sequence[float] = DECILES) -> None:
        self.imputer = imputer
        self.percentiles = percentiles

    def __call__(self, input_tensor: Tensor, cams: Array, targets: Targets, model: nn.Module) -> Array:
        """(B, C, H, W), (B, H, W) → (B,)."""
        metrics = [self.imputer(percentile) for percentile in self.percentiles]
        if all(type(metric).__call__ is PerturbationConfidenceMetric.__call__ for metric in metrics):
            before = scores(model, input_tensor, targets)
            found = [scores(model, metric.perturbed(input_tensor, cams), targets) - before for metric in metrics]
        else:
            found = [metric(input_tensor, cams, targets, model) for metric in metrics]
        return np.asarray(np.mean(np.stack(found).astype(np.float32), axis=0))


def scores(model: nn.Module, images: Tensor, targets: Targets) -> Array:
    """Each target's value on its image's output, float32."""
    found = outputs(model, images)
    values = [to_numpy(target(output)) for target, output in zip(targets, found, strict=True)]
    return np.stack(values).astype(np.float32)


def otsu(levels: Array) -> int:
    """The uint8 threshold that separates two classes best: the least within-class variance."""
    counts = np.bincount(levels.ravel(), minlength=256).astype(np.float64)
    share = counts / counts.sum()
    below = np.cumsum(share)
    mean_below = np.cumsum(share * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean_below[-1] * below - mean_below) ** 2 / (below * (1 - below))
    usable = (np.minimum(below, 1 - below) > np.finfo(np.float32).eps) & np.isfinite(between)
    return int(np.argmax(np.where(usable, between, 0)))
