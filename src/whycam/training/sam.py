"""Sharpness-aware minimization (SAM): the gradient at nearby weights with the highest loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def perturbed_weights(model: nn.Module, radius: float) -> Iterator[None]:
    """Move the weights to the point within ``radius`` with the highest loss; restore them exactly afterwards.

    The point is found to first order, from the gradients that the parameters hold. Each weight tensor w with two or
    more axes and gradient g moves by radius · ‖w‖² g / √Σ(‖w‖ ‖g‖)², where the sum is over all such tensors (Foret et
    al., 2021, arXiv:2010.01412). Distances are relative to each tensor's norm (Kwon et al., 2021, arXiv:2102.11600, per
    layer), because the scale of a convolution before a normalization layer has no effect on the output. Biases and
    normalization parameters do not move. Changes that a forward pass in the block makes to buffers (running statistics)
    are undone. If all gradients are zero, nothing moves.
    """
    pairs = [(p, p.grad) for p in model.parameters() if p.grad is not None and p.requires_grad and p.ndim > 1]
    changed: list[Tensor] = [p for p, _ in pairs] + list(model.buffers())
    saved = [tensor.detach().clone() for tensor in changed]
    with torch.no_grad():
        _ascend([p for p, _ in pairs], [gradient for _, gradient in pairs], radius)
    # Free these gradients before the block computes those at the perturbed weights.
    del pairs
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(changed, saved, strict=True):
                tensor.copy_(value)


def _ascend(weights: list[Tensor], gradients: list[Tensor], radius: float) -> None:
    if not weights:
        return
    norms = torch.stack(torch._foreach_norm(weights))
    relative_gradient_norms = norms * torch.stack(torch._foreach_norm(gradients))
    total = relative_gradient_norms.norm()
    factors = norms**2 * torch.where(total > 0, radius / total, 0)
    torch._foreach_add_(weights, torch._foreach_mul(gradients, factors.unbind()))
