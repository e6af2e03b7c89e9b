"""Finer-CAM (arXiv:2501.11309) as grad-cam has it: alpha 1, the similar classes weighted by their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array, to_numpy
from whycam.compat.pytorch_grad_cam._explainer import Explainer
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget, ImageTargets
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM, Targets
from whycam.compat.pytorch_grad_cam.grad_cam import GradCAM
from whycam.compat.pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

DEFAULT_COMPARISON_CATEGORIES = (1, 2, 3)


class FinerCAM(Explainer):
    """What distinguishes a class from the classes most like it, by any class of this package.

    Args:
        model: the network.
        target_layers: where to look.
        reshape_transform: turns a layer's output into (B, C, …).
        base_method: the class that makes the map.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        base_method: Any = GradCAM,
    ) -> None:
        self.base_cam: BaseCAM = base_method(model, target_layers, reshape_transform)
        self.compute_input_gradient = self.base_cam.compute_input_gradient
        self.uses_gradients = self.base_cam.uses_gradients

    def forward(
        self,
        input_tensor: Tensor,
        targets: Targets = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> Array:
        """(B, C, H, W) → (B, H, W) float32 on [0, 1].

        Args:
            input_tensor: (B, C, H, W).
            targets: one per image, taken as they are; None for the comparison.
            eigen_smooth: the first principal component instead of the sum over channels.
            alpha: how much of the similar classes is taken off.
            comparison_categories: which of the classes in order of likeness, 0 being the class itself; 1, 2 and 3.
            target_idx: the class; None for the predicted one.
        """

        def compare(logits: Tensor) -> list[ImageTarget]:
            scores = to_numpy(logits)
            classes = scores.shape[-1]
            ranks = DEFAULT_COMPARISON_CATEGORIES if comparison_categories is None else comparison_categories
            ranks = [rank for rank in ranks if rank < classes]
            own = scores.max(axis=-1) if target_idx is None else scores[:, target_idx]
            order = np.argsort(np.abs(scores - own[:, None]), axis=-1).tolist()
            return [FinerWeightedTarget(row[0], [row[rank] for rank in ranks], alpha) for row in order]

        result = self.base_cam.forward(
            input_tensor, ImageTargets(None, compare) if targets is None else targets, eigen_smooth
        )
        if self.base_cam._htcore is not None:
            self.base_cam._htcore.mark_step()
        return result

    def _holders(self) -> Sequence[Any]:
        return [self.base_cam]
