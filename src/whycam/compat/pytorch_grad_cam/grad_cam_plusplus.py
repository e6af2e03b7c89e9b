"""Grad-CAM++ (arXiv:1710.11063)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM, over_positions


class GradCAMPlusPlus(BaseCAM):
    """Positive gradients weighed by G² / (2G² + G³ · Σ A + 1e-6)."""

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)

    @on_device
    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Tensor,
        grads: Tensor,
    ) -> Tensor:
        """(B, C)."""
        squares = grads**2
        alpha = squares / (2 * squares + over_positions(activations) * squares * grads + 1e-6)
        alpha = torch.where(grads != 0, alpha, 0)
        return over_positions(grads.relu() * alpha).flatten(1)
