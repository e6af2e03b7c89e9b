"""A control: random channel weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.seeds import generator


class RandomCAM(BaseCAM):
    """Channels weighed uniformly at random from −1 to 1; ``seed`` decides which, grad-cam draws from global state."""

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

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
        places = [place for place, layer in enumerate(self.target_layers) if layer is target_layer]
        draw = generator(self.seed, "RandomCAM", *places)
        return 2 * torch.rand(activations.shape[:2], generator=draw).to(activations) - 1
