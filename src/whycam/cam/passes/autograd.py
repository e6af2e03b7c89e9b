"""Gradients with respect to chosen tensors, with clear errors for checkpointed models."""

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
    """∂(Σ weights · score)/∂inputs; None for inputs that the score does not depend on. See `torch.autograd.grad`.

    Raises:
        WhycamError: a part of the model is checkpointed with ``use_reentrant=True``, which does not allow this.
    """
    try:
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            score, inputs, weights, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise WhycamError(REENTRANT) from error
        raise
    return gradients


def in_reentrant_checkpoint() -> bool:
    """Whether the caller runs in the forward pass of a block that is checkpointed with ``use_reentrant=True``.

    Inside such a block gradients are off, as under ``no_grad``; only the call stack distinguishes the two.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back
    return False
