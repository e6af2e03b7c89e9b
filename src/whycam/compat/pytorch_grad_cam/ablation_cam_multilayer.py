"""Ablation-CAM of several layers that are switched off together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.compat.pytorch_grad_cam.utils.find_layers import replace_layer_recursive
from whycam.errors import WhycamError

__all__ = ["AblationCAM", "AblationLayer", "replace_layer_recursive"]

_OFF = 1e5


class AblationLayer(nn.Module):
    """A layer of which row i of the batch lacks channel ``indices[i]``.

    Args:
        layer: the layer.
        reshape_transform: where there is one, channels are the last axis.
        indices: one channel per row.
    """

    def __init__(self, layer: nn.Module, reshape_transform: Transform | None, indices: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.reshape_transform = reshape_transform
        self.indices = list(indices)

    def forward(self, x: Any) -> Tensor:
        """The layer's output without those channels."""
        return self.off(self.layer(x))

    def instead(self, _layer: object, output: Tensor) -> Tensor:
        """`off`, as a hook."""
        return self.off(output)

    def off(self, output: Tensor) -> Tensor:
        """``output`` without those channels."""
        maps = output if self.reshape_transform is None else output.movedim(-1, 1)
        rows = torch.arange(len(maps), device=maps.device)
        low = maps.min()
        maps = maps.clone()
        maps[rows, torch.tensor(self.indices[: len(maps)], device=maps.device)] = 0 if low == 0 else low - _OFF
        return maps if self.reshape_transform is None else maps.movedim(1, -1)


class AblationCAM(BaseCAM):
    """Ablation-CAM with a channel switched off in all layers at once; they must have equally many channels."""

    batch_size = 32

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
        grads: Tensor | None,
    ) -> Tensor:
        """(B, C)."""
        counts = {found.shape[1] for found in self.activations_and_grads.activations}
        if len(counts) > 1:
            raise WhycamError(f"the layers have {sorted(counts)} channels: to switch them off together, choose equals")
        original = _passes.score(self.model, input_tensor, targets)
        known = _passes.named(self.target_layers)
        scores = original[:, None].repeat(1, activations.shape[1])
        for image in range(len(input_tensor)):
            for channels in _passes.chunks(torch.arange(activations.shape[1]), self.batch_size):
                off = AblationLayer(self.target_layers[0], self.reshape_transform, channels.tolist())
                batch = input_tensor[image].expand(len(channels), *input_tensor.shape[1:])
                with _passes.hooks(known, off.instead):
                    scores[image, channels] = _passes.score(self.model, batch, [targets[image]] * len(channels))
        return (original[:, None] - scores) / original[:, None]
