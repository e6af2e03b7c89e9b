"""Recognize the most common head of a network: a mean over positions and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pooled_linear_head(
    model: nn.Module, activations: Tensor, logits: Tensor, *, autocast: bool | None = None
) -> nn.Linear | None:
    """The linear layer for which logits = W · mean_p(A) + b holds, or None if there is none.

    The equation is checked numerically, so it does not matter how the network is written.

    Args:
        model: the network.
        activations: (B, C, …positions).
        logits: (B, K).
        autocast: whether the network ran under autocast; None: in the current mode.
    """
    if logits.ndim != 2:
        return None
    autocast = torch.is_autocast_enabled(activations.device.type) if autocast is None else autocast
    pooled = activations.flatten(2).mean(dim=2)
    for module in reversed(list(model.modules())):
        if not isinstance(module, nn.Linear) or module.weight.shape != (logits.shape[1], pooled.shape[1]):
            continue
        weight, bias = module.weight.detach().to(pooled), module.bias
        predicted = pooled @ weight.T + (0 if bias is None else bias.detach().to(pooled))
        # The tolerance follows the network's rounding, which is coarser than that of this sum: half precision, or on a
        # GPU TensorFloat-32, whose products have 11 bits.
        coarse = module.weight.dtype.itemsize < 4 or autocast
        bound = 2e-2 if coarse else 1e-3 if weight.is_cuda and module.weight.dtype == torch.float32 else 1e-4
        # Rounding errors are relative to the absolute sum of the terms, for each image and class.
        magnitude = pooled.abs() @ weight.abs().T
        if bool(((predicted - logits.to(predicted)).abs() <= bound * magnitude).all()):
            return module
    return None
