"""Recognize the commonest end of a network: a mean over positions and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pooled_linear_head(
    model: nn.Module, activations: Tensor, logits: Tensor, *, autocast: bool | None = None
) -> nn.Linear | None:
    """The linear layer for which logits = W · mean_p(A) + b holds, or None where there is none.

    It is checked on the numbers themselves, so it does not matter how the network is written.

    Args:
        model: the network.
        activations: (B, C, …positions).
        logits: (B, K).
        autocast: whether the network ran under autocast; None where it ran in the mode that there is now.
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
        # A network in half precision agrees with this sum in single precision to half's rounding only, and one on a
        # GPU whose products may be computed in TensorFloat-32 to that of its 11 bits.
        coarse = module.weight.dtype.itemsize < 4 or autocast
        bound = 2e-2 if coarse else 1e-3 if weight.is_cuda and module.weight.dtype == torch.float32 else 1e-4
        # Rounding is relative to what was added up: for every image and class by itself, the bias left out.
        added = pooled.abs() @ weight.abs().T
        if bool(((predicted - logits.to(predicted)).abs() <= bound * added).all()):
            return module
    return None
