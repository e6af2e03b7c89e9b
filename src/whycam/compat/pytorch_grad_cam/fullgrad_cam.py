"""FullGrad (arXiv:1905.00780) as grad-cam has it: it scales every channel by itself, so it is not complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import to_numpy
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._scaling import resized, scale, scale_channels
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.compat.pytorch_grad_cam.utils.find_layers import find_layer_predicate_recursive
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import project


class FullGrad(BaseCAM):
    """|x·∂y/∂x| plus |b·∂y/∂b| of every convolution's and BatchNorm's bias; ``target_layers`` is not used.

    For the published, complete method see ``whycam.explain(…, methods="fullgrad")``.
    """

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module] = (), reshape_transform: Transform | None = None
    ) -> None:
        layers = find_layer_predicate_recursive(model, _has_bias)
        super().__init__(model, layers, reshape_transform, compute_input_gradient=True)
        self.bias_data = [to_numpy(self.get_bias_data(layer)) for layer in layers]

    def get_bias_data(self, layer: Any) -> Tensor:
        """(C,); BatchNorm's is β − γμ/√(var + ε)."""
        bias: Tensor = layer.bias.detach()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            bias = bias - layer.running_mean * layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
        return bias

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Sequence[ImageTarget], eigen_smooth: bool) -> Any:
        """(B, 1, H, W): the sum over layers, or their first principal component."""
        size = self.get_target_width_height(input_tensor)
        assert input_tensor.grad is not None
        images = input_tensor.detach()
        parts = [scale_channels((input_tensor.grad * images).abs(), size)]
        for place, bias in enumerate(self.bias_data):
            gradient = self.activations_and_grads.at(place)[1]
            if gradient is None:
                continue  # the score does not depend on the layer
            share = torch.from_numpy(bias).to(gradient)[None, :, None, None] * gradient
            # Resizing is linear: the channels' sum needs it only once.
            parts.append(resized(scale_channels(share.abs()).sum(dim=1), size[::-1])[:, None])
        cams = torch.cat(parts, dim=1)
        if not eigen_smooth:
            return cams.sum(dim=1, keepdim=True)
        small = scale_channels(cams, (size[0] // 8, size[1] // 8))
        return scale_channels(project(small)[:, None], size)

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Any:
        """(B, 1, H, W) → (B, H, W), scaled."""
        return scale(cam_per_target_layer.sum(dim=1))


def _has_bias(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv2d, nn.BatchNorm2d) and layer.bias is not None
