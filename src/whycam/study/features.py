"""The features of an image: the input of the network's last linear layer, its head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.nn_utils import hooked, instrumented, unwrapped


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer whose output is the network's output.

    Attributes:
        path: its name in the network.
        features: D, the length of its input.
        module: the layer.
    """

    path: str
    features: int
    module: nn.Linear


@torch.inference_mode()
def find_head(model: nn.Module, inputs: Tensor) -> Head | None:
    """Find the linear layer whose output equals the network's logits exactly; None if there is no such layer.

    The network runs once and its linear layers are compared, so the network's code does not matter. ResNets, VGGs and
    vision transformers have a head; a network that ends in a convolution or scales its logits has none. Heads inside
    wrapped and compiled parts are found.

    Args:
        model: in any mode; it is left as it was.
        inputs: (1, 3, H, W), normalized as the network expects.

    Raises:
        WhycamError: a lazy module was not initialized by a first batch.
    """
    seen: list[tuple[str, nn.Linear, Tensor, Tensor]] = []

    def record(path: str) -> Any:
        def hook(module: nn.Linear, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            seen.append((path, module, _input(args, kwargs), output))

        return hook

    linear = ((path, module) for path, module in unwrapped(model).named_modules() if isinstance(module, nn.Linear))
    with instrumented(model), hooked(((module, record(path)) for path, module in linear), with_kwargs=True):
        logits = model(inputs)
    found = [
        Head(path, features.shape[1], module)
        for path, module, features, output in seen
        if features.ndim == 2 and output.shape == logits.shape and torch.equal(output, logits)
    ]
    # A layer that runs twice for an image would give two features.
    return found[-1] if found and sum(found[-1].module is module for _, module, _, _ in seen) == 1 else None


@contextmanager
def features_of(model: nn.Module, head: Head | None) -> Iterator[list[Tensor]]:
    """A list to which every forward inside the block appends the head's input, (B, D); without a head it stays empty.

    Compiled parts run uncompiled inside the block, since compiled code does not call hooks.
    """
    seen: list[Tensor] = []
    if head is None:
        yield seen
        return

    def record(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(_input(args, kwargs).detach())

    with instrumented(model), hooked([(head.module, record)], before=True, with_kwargs=True):
        yield seen


def _input(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """A linear layer's argument, given by position or by keyword."""
    return args[0] if args else kwargs["input"]


def directions(features: Tensor) -> Tensor:
    """Scale (N, D) features to length 1, as float16 on the CPU. A cosine needs no more; zeros stay zeros."""
    return F.normalize(features.float(), dim=1).half().cpu()
