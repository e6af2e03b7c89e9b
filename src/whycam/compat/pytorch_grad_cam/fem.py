"""FEM (Ahmed Asif Fuad et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM


class FEM(BaseCAM):
    """Channels weighed by the fraction of positions that lie k standard deviations above their mean."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.k = k

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
        flat = activations.flatten(2)
        bound = flat.mean(dim=2, keepdim=True) + self.k * flat.std(dim=2, unbiased=False, keepdim=True)
        weights = (flat > bound).to(flat.dtype).mean(dim=2, keepdim=True)
        return (weights * flat).sum(dim=1).reshape(len(flat), *activations.shape[2:])
