"""Ablation-CAM of several layers that are switched off together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._methods import FormulaCAM, LayerView
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam.ablation_layer import switched_off
from whycam.compat.pytorch_grad_cam.utils.find_layers import replace_layer_recursive
from whycam.errors import WhycamError

__all__ = ["AblationCAM", "AblationLayer", "replace_layer_recursive"]


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

    def off(self, output: Tensor) -> Tensor:
        """``output`` without those channels."""
        maps = output if self.reshape_transform is None else output.movedim(-1, 1)
        off = switched_off(maps, torch.tensor(self.indices[: len(maps)]), maps.min(), below=1e5)
        return off if self.reshape_transform is None else off.movedim(1, -1)


def _ablationcam(v: LayerView) -> Tensor:
    cam = v.cam
    counts = {found.shape[1] for found in cam.activations_and_grads.activations}
    if len(counts) > 1:
        raise WhycamError(f"the layers have {sorted(counts)} channels: to switch them off together, choose equals")
    original = _passes.score(cam.model, v.images, v.targets)
    known = _passes.named(cam.target_layers)

    def without(image: int, channels: Tensor) -> Tensor:
        layer = AblationLayer(cam.target_layers[0], cam.reshape_transform, channels.tolist())
        batch = v.images[image].expand(len(channels), *v.images.shape[1:])
        with _passes.hooks(known, lambda _layer, output: layer.off(output)):
            return _passes.score(cam.model, batch, [v.targets[image]] * len(channels))

    scores = original[:, None].repeat(1, v.a.shape[1])
    for image in range(len(v.images)):
        for channels in torch.split(torch.arange(v.a.shape[1]), cam.batch_size):
            scores[image, channels] = without(image, channels)
    return (original[:, None] - scores) / original[:, None]


class AblationCAM(FormulaCAM, path="ablation_cam_multilayer", weights=_ablationcam, gradients=False):
    """Ablation-CAM with a channel switched off in all layers at once; all must have the same number of channels."""

    batch_size = 32
