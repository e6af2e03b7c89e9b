"""Backward passes to chosen tensors, and what stands in their way said in words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from whycam.errors import WhycamError

REENTRANT = (
    "checkpointing with use_reentrant=True runs without gradients and has none in the middle of the model: pass "
    "use_reentrant=False to torch.utils.checkpoint, or switch checkpointing off while the model is explained"
)


def differentiate(
    score: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor | None = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """∂(Σ weights · score)/∂inputs, None for what the score does not depend on; see `torch.autograd.grad`.

    Raises:
        WhycamError: a part of the model is checkpointed in the way that allows no such thing.
    """
    try:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            score, inputs, weights, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise WhycamError(REENTRANT) from error
        raise
    return found


def in_reentrant_checkpoint() -> bool:
    """Whether this is called from the forward pass of a block that is checkpointed with ``use_reentrant=True``.

    It looks like ``no_grad`` from the inside; only the call stack tells the two apart.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back
    return False
