"""XGrad-CAM (arXiv:2008.02312)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM, over_positions


class XGradCAM(BaseCAM):
    """Channels weighed by Σ G·A / (Σ A + 1e-7)."""

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
        return over_positions(grads * activations / (over_positions(activations) + 1e-7)).flatten(1)
