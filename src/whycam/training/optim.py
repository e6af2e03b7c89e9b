"""The optimiser of a recipe: which parameters decay, and how."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whycam.training.recipe import Recipe


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into those that decay (weights of two and more axes) and those that do not.

    The latter are biases and normalisation scales and shifts: shrinking them does not regularise the function.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


class Optimizer:
    """A torch optimiser whose learning rate and momentum are set anew each step, with decoupled decay.

    Decoupled decay (Loshchilov and Hutter, 2019, arXiv:1711.05101) multiplies the weights before the step and never
    enters the momentum. For SGD it shrinks by lr · weight_decay / (1 − momentum), so that ``weight_decay`` means
    what it means in L2 recipes.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        weights, others = decay_groups(model)
        self.decayed: list[nn.Parameter] = []
        l2, l2_others = 0.0, 0.0
        if recipe.decoupled:
            self.decayed = weights + others if recipe.decay_all else weights
        else:
            l2, l2_others = recipe.weight_decay, recipe.weight_decay if recipe.decay_all else 0.0
        groups = [{"params": weights, "weight_decay": l2}, {"params": others, "weight_decay": l2_others}]
        self.weight_decay = recipe.weight_decay
        self.adaptive = recipe.optimizer == "adam"
        if self.adaptive:
            self.torch: torch.optim.Optimizer = torch.optim.Adam(
                groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True
            )
        else:
            self.torch = torch.optim.SGD(
                groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
            )

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update the parameters from their gradients and clear the gradients."""
        for group in self.torch.param_groups:
            group["lr"] = lr
            if self.adaptive:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
        if self.decayed:
            shrink = lr * self.weight_decay / (1.0 if self.adaptive else 1 - momentum)
            torch._foreach_mul_(self.decayed, 1 - shrink)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's tensors under flat names: parameter index and slot."""
        state = self.torch.state_dict()["state"]
        return {
            f"{index}.{slot}": value
            for index, slots in state.items()
            for slot, value in slots.items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, slot = name.split(".", 1)
            state.setdefault(int(index), {})[slot] = value
        self.torch.load_state_dict({"state": state, "param_groups": self.torch.state_dict()["param_groups"]})
