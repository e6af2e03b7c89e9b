"""Sharpness-aware minimization: the gradient from the worst place nearby instead of from here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def perturbed_weights(model: nn.Module, radius: float) -> Iterator[None]:
    """Move the weights to where the loss rises the steepest within ``radius``; afterwards they are back, bit for bit.

    With gradient g and norm ‖w‖ of each weight tensor w of two and more axes, w moves by
    radius · ‖w‖² g / √Σ(‖w‖ ‖g‖)², the sum over all of them: of all places whose distances in parts of each tensor's
    own norm, squared and summed, are at most radius², the steepest way (Foret et al., 2021, arXiv:2010.01412, in the
    measure of Kwon et al., 2021, arXiv:2102.11600, by layers). How large a tensor is thus does not matter, as it does
    not to a convolution that a normalization follows. Biases and normalizations stay, and what a forward pass inside
    does to the buffers' contents (running statistics) is undone. Nothing moves where the gradients are zero.
    """
    pairs = [(p, p.grad) for p in model.parameters() if p.grad is not None and p.requires_grad and p.ndim > 1]
    moved: list[Tensor] = [p for p, _ in pairs] + list(model.buffers())
    here = [tensor.detach().clone() for tensor in moved]
    with torch.no_grad():
        _ascend([p for p, _ in pairs], [gradient for _, gradient in pairs], radius)
    # The gradients from here are not kept while those from there are computed.
    del pairs
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(moved, here, strict=True):
                tensor.copy_(value)


def _ascend(weights: list[Tensor], gradients: list[Tensor], radius: float) -> None:
    if not weights:
        return
    sizes = torch.stack(torch._foreach_norm(weights))
    slopes = sizes * torch.stack(torch._foreach_norm(gradients))
    length = slopes.norm()
    factors = sizes**2 * torch.where(length > 0, radius / length, 0)
    torch._foreach_add_(weights, torch._foreach_mul(gradients, factors.unbind()))
