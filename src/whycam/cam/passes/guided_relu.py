"""Guided backpropagation (Springenberg et al., 2014, arXiv:1412.6806) without touching the model.

Inside the block every ReLU (module, function or method) passes a gradient on only where the activation was positive in
the forward pass and the gradient is positive in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELUS = frozenset({
    torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, torch.nn.functional.relu,
})  # fmt: skip
_IN_PLACE = frozenset({torch.relu_, torch.Tensor.relu_})


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        out = x.clamp(min=0)
        context.save_for_backward(out)
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (out,) = context.saved_tensors
        passed: Tensor = gradients[0].clamp(min=0) * (out > 0)
        return passed


# torch does not annotate `apply`; this name has a type.
_guided: Callable[[Tensor], Tensor] = _Guided.apply


class _GuidedMode(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func not in _RELUS:
            return func(*args, **(kwargs or {}))
        out = _guided(args[0])
        in_place = func in _IN_PLACE or (kwargs or {}).get("inplace", args[1] if len(args) > 1 else False)
        # After an in-place ReLU the network may go on with the argument or with the returned tensor: set both.
        return args[0].copy_(out) if in_place else out


@contextmanager
def guided_relu(active: bool = True) -> Iterator[None]:
    """Guide the ReLUs that run inside the block; do nothing if ``active`` is False."""
    if not active:
        yield
        return
    with _GuidedMode():
        yield
