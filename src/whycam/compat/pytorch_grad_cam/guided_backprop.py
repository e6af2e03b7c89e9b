"""Guided backpropagation (arXiv:1412.6806)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.guided_relu import guided_relu
from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.nn_utils import first_tensor, instrumented, unwrapped


class GuidedBackpropReLU(torch.autograd.Function):
    """ReLU that lets only what was positive on the way forward, and is on the way back, through."""

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


class GuidedBackpropReLUasModule(nn.Module):
    """The same as a module."""

    def forward(self, input_img: Tensor) -> Tensor:
        """Any shape, kept."""
        out: Tensor = GuidedBackpropReLU.apply(input_img)  # type: ignore[no-untyped-call]
        return out


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
        """Put guided ReLUs into a model for good."""
        for parent in list(module_top.modules()):
            for name, module in parent._modules.items():
                if type(module).__name__ == "ReLU":
                    parent._modules[name] = GuidedBackpropReLUasModule()

    def recursive_replace_guidedrelu_with_relu(self, module_top: nn.Module) -> None:
        """Undo it."""
        for parent in list(module_top.modules()):
            for name, module in parent._modules.items():
                if isinstance(module, GuidedBackpropReLUasModule):
                    parent._modules[name] = nn.ReLU()

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

        def guide(_layer: Any, output: Tensor) -> Tensor:
            # What is positive stays as it is on the way forward; the way back passes the guided one first.
            with guided_relu():
                return torch.relu(output)

        with torch.inference_mode(False), torch.enable_grad(), instrumented(network), _passes.hooks(relus, guide):
            leaf = input_img.to(self.device).detach().clone().requires_grad_()
            frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
            output = first_tensor(functional_call(network, frozen, (leaf,)))
            assert output is not None
            category = int(output.argmax()) if target_category is None else target_category
            (gradient,) = differentiate(output[0, category], [leaf])
        assert gradient is not None  # an output that depends on nothing has no class
        result: Array = gradient[0].permute(1, 2, 0).cpu().numpy()
        return result
