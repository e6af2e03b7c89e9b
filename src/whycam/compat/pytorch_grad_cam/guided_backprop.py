"""Guided backpropagation (arXiv:1412.6806)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whycam.cam.passes.autograd import differentiate
from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.nn_utils import first_tensor, unwrapped


class GuidedBackpropReLU(torch.autograd.Function):
    """A ReLU whose backward pass keeps only positive gradients at positive inputs."""

    @staticmethod
    def forward(ctx: Any, input_img: Tensor) -> Tensor:
        """Any shape, kept."""
        ctx.save_for_backward(input_img > 0)
        return input_img.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Any shape, kept."""
        (positive,) = ctx.saved_tensors
        passed: Tensor = gradients[0].clamp(min=0) * positive
        return passed


# torch does not annotate apply.
_guided: Callable[[Tensor], Tensor] = GuidedBackpropReLU.apply


class GuidedBackpropReLUasModule(nn.Module):
    """`GuidedBackpropReLU` as a module."""

    def forward(self, input_img: Tensor) -> Tensor:
        """Any shape, kept."""
        return _guided(input_img)


class GuidedBackpropReLUModel:
    """The input gradient of a class score, guided at every `torch.nn.ReLU` module.

    ReLUs written as functions are left as they are, as in grad-cam; ``whycam.explain(…, methods="guidedbackprop")``
    guides them too. Nothing in the model is replaced, and the caller's tensor keeps its ``.grad``.

    Args:
        model: the network.
        device: where to run; the model is moved there.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        parameter = next(model.parameters(), None)
        self.model = model if device is None else model.to(device)
        self.device = torch.device(device or ("cpu" if parameter is None else parameter.device))

    def forward(self, input_img: Tensor) -> Any:
        """The network's output."""
        return self.model(input_img)

    def recursive_replace_relu_with_guidedrelu(self, module_top: nn.Module) -> None:
        """Replace a model's ReLUs by guided ones; this changes the model."""
        _replace(module_top, lambda module: type(module).__name__ == "ReLU", GuidedBackpropReLUasModule)

    def recursive_replace_guidedrelu_with_relu(self, module_top: nn.Module) -> None:
        """Undo `recursive_replace_relu_with_guidedrelu`."""
        _replace(module_top, lambda module: isinstance(module, GuidedBackpropReLUasModule), nn.ReLU)

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> Array:
        """The first image's gradient.

        Args:
            input_img: (1, C, H, W).
            target_category: the class; None for the one with the largest logit.

        Returns:
            (H, W, C) float32.
        """
        network = unwrapped(self.model)
        relus = _passes.named(module for module in network.modules() if isinstance(module, nn.ReLU))
        with _passes.from_the_input(
            network, input_img.to(self.device), relus, lambda _layer, output: _guided(output)
        ) as (leaf, outputs):
            output = first_tensor(outputs)
            assert output is not None
            category = int(output.argmax()) if target_category is None else target_category
            (gradient,) = differentiate(output[0, category], [leaf])
        assert gradient is not None  # the score depends on the image
        result: Array = gradient[0].permute(1, 2, 0).cpu().numpy()
        return result


def _replace(model: nn.Module, is_old: Callable[[nn.Module | None], bool], new: Callable[[], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, module in parent._modules.items():
            if is_old(module):
                parent._modules[name] = new()
