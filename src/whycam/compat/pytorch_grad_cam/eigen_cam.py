"""Eigen-CAM (arXiv:2008.00299)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import project


class EigenCAM(BaseCAM):
    """The activations' first principal component; no gradients, no target."""

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    @on_device
    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Tensor,
        grads: Tensor,
        eigen_smooth: bool = False,
    ) -> Tensor:
        """(B, …positions), signed."""
        return project(activations)
