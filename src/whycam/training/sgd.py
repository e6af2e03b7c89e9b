"""SGD with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def decay_factor(group: dict[str, Any]) -> float | Tensor:
    """The factor on a parameter group's weights in each step: 1 − lr · weight_decay / (1 − momentum).

    This equals the effect of L2 regularization once momentum has built up. It is a tensor if the learning rate is one.
    """
    factor: float | Tensor = 1 - group["lr"] * group["weight_decay"] / (1 - group["momentum"])
    return factor


class DecoupledSGD(torch.optim.SGD):
    """SGD whose weight decay enters neither the gradient nor the momentum."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Shrink the weights that decay, then take an SGD step."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            if group["weight_decay"]:
                torch._foreach_mul_(group["params"], decay_factor(group))
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
