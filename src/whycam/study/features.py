"""The features that a classifier's head turns into logits: what its last linear layer is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.nn_utils import instrumented, unwrapped


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer whose output is the network's.

    Attributes:
        path: where it is in the network.
        features: D, the length of its input.
        module: the layer.
    """

    path: str
    features: int
    module: nn.Linear


@torch.inference_mode()
def find_head(model: nn.Module, inputs: Tensor) -> Head | None:
    """The linear layer whose output is, number for number, the network's logits; None where there is no such layer.

    It is found by running the network once, so it does not matter how the network is written: ResNets, VGGs and vision
    transformers have one; a network that ends in a convolution, or that scales its logits, has not. Wrapped and
    compiled parts are looked into.

    Args:
        model: in whatever mode; afterwards as it was.
        inputs: (1, 3, H, W), normalized as the network expects.

    Raises:
        WhycamError: a lazy module has not met its first batch.
    """
    seen: list[tuple[str, nn.Linear, Tensor, Tensor]] = []

    def record(path: str) -> Any:
        def hook(module: nn.Linear, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            seen.append((path, module, _input(given, named), output))

        return hook

    with ExitStack() as stack:
        stack.enter_context(instrumented(model))
        for path, module in unwrapped(model).named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(record(path), with_kwargs=True).remove)
        logits = model(inputs)
    found = [
        Head(path, given.shape[1], module)
        for path, module, given, output in seen
        if given.ndim == 2 and output.shape == logits.shape and torch.equal(output, logits)
    ]
    # A layer that is called twice for an image would give two features for it.
    return found[-1] if found and sum(found[-1].module is module for _, module, _, _ in seen) == 1 else None


@contextmanager
def features_of(model: nn.Module, head: Head | None) -> Iterator[list[Tensor]]:
    """A list into which every forward inside the block puts the head's input, (B, D); with no head it stays empty.

    With a head, the model's compiled parts run uncompiled inside the block: compiled, they would not tell.
    """
    seen: list[Tensor] = []
    if head is None:
        yield seen
        return

    def record(_module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(_input(given, named).detach())

    with instrumented(model):
        handle = head.module.register_forward_pre_hook(record, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()


def _input(given: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor:
    """What a linear layer was called with, by position or by keyword."""
    return given[0] if given else named["input"]


def directions(features: Tensor) -> Tensor:
    """(N, D) features as fp16 of length 1 on the CPU, all that a cosine needs; zeros stay zeros."""
    return F.normalize(features.float(), dim=1).half().cpu()
