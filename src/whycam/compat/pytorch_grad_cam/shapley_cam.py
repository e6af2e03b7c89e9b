"""Shapley-CAM (arXiv:2501.06261)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM


class ShapleyCAM(BaseCAM):
    """Channels weighed by the mean of G − ½ H·A; for the paper's own target give ``ClassifierOutputReST``."""

    _curvature = True

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, compute_input_gradient=True)

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
        place = next(place for place, layer in enumerate(self.target_layers) if layer is target_layer)
        share = grads - 0.5 * self.activations_and_grads.curvature_at(place)
        return share.flatten(2).mean(dim=2)
