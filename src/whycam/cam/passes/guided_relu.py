"""Guided backpropagation (Springenberg et al., 2014, arXiv:1412.6806) without touching the model.

Inside the block every ReLU, whether module, function or method, lets through only what was positive on the way forward
and is positive on the way back.
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


# torch's own annotations leave this out; the name here has a type.
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
        # Whoever works in place may go on with the tensor itself rather than with what is returned.
        return args[0].copy_(out) if in_place else out


@contextmanager
def guided_relu(active: bool = True) -> Iterator[None]:
    """Guide the ReLUs that run inside the block; nothing at all where ``active`` is False."""
    if not active:
        yield
        return
    with _GuidedMode():
        yield
