"""Refine-CAM (arXiv:2605.14641): the product over layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array, to_numpy
from whycam.compat.pytorch_grad_cam._explainer import Explainer
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._scaling import scale
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM, Targets
from whycam.compat.pytorch_grad_cam.grad_cam_plusplus import GradCAMPlusPlus


class RefineCAM(Explainer):
    """The product of the layers' maps, each on [0, 1]; a layer without positive evidence vetoes everything.

    Args:
        model: the network.
        target_layers: whose maps are multiplied.
        reshape_transform: turns a layer's output into (B, C, …).
        base_method: the class that makes each map.
        **kwargs: more arguments of ``base_method``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        base_method: Any = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        self.base_cam_per_layer = [base_method(model, [layer], reshape_transform, **kwargs) for layer in target_layers]
        joint = _shares_a_pass(base_method)
        self._joint: BaseCAM | None = base_method(model, target_layers, reshape_transform, **kwargs) if joint else None

    def forward(self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False) -> Array:
        """(B, C, H, W) → (B, H, W) float32 on [0, 1]."""
        if self._joint is None:
            maps = [
                torch.from_numpy(cam(input_tensor, targets, eigen_smooth=eigen_smooth))
                for cam in self.base_cam_per_layer
            ]
        else:
            images, members = self._joint.look(input_tensor, targets)
            cams = self._joint.compute_cam_per_layer(images, members, eigen_smooth)
            maps = [self._joint.aggregate_multi_layers([cam]) for cam in cams]
        result: Array = to_numpy(scale(torch.stack(maps).prod(dim=0)))
        return result

    def _holders(self) -> Sequence[Any]:
        return [*self.base_cam_per_layer, self._joint]


def _shares_a_pass(base_method: Any) -> bool:
    """Whether all layers' maps come from one pass as they would from one each."""
    if not (inspect.isclass(base_method) and issubclass(base_method, BaseCAM)):
        return False
    whole = ("__call__", "forward", "compute_cam_per_layer", "aggregate_multi_layers")
    return all(getattr(base_method, name) is getattr(BaseCAM, name) for name in whole)
