"""The optimizer of a recipe: which parameters decay, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whycam.training.muon import Muon
from whycam.training.recipe import Recipe
from whycam.training.sgd import DecoupledSGD


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into those that decay (weights of two and more axes) and those that do not.

    The latter are biases and normalization scales and shifts: shrinking them does not regularize the function.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters by how they are stepped: decay, multiple of the rate (``scale``), orthogonal or not."""
    weights, others = decay_groups(model)
    muon = recipe.optimizer == "muon"
    # By their modules: other parameters of many axes (positions of tokens, scales of layers) have a size of their own.
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d) if muon else ()
    convolved = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    filters = [p for p in weights if id(p) in convolved]
    weights = [p for p in weights if id(p) not in convolved]
    apart = {id(p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    # One group of all if nothing sets the biases apart: fewer, larger steps.
    biases = [p for p in others if id(p) in apart] if recipe.bias_rate != 1 else []
    gains = [p for p in others if id(p) not in apart] if recipe.bias_rate != 1 else others
    rest = recipe.other_rate if muon else 1.0
    decay, small_decay = recipe.weight_decay, recipe.weight_decay if recipe.decay_all else 0.0
    groups: list[dict[str, Any]] = [
        {"params": filters, "weight_decay": 0.0, "scale": 1.0, "orthogonal": True},
        {"params": weights, "weight_decay": decay, "scale": rest},
        {"params": gains, "weight_decay": small_decay, "scale": rest},
        {"params": biases, "weight_decay": small_decay, "scale": rest * recipe.bias_rate},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer that ``recipe`` asks for, over ``model``'s parameters.

    Decoupled decay (Loshchilov and Hutter, 2019, arXiv:1711.05101) multiplies the weights before the step and never
    enters the momentum. For SGD it shrinks them by lr · weight_decay / (1 − momentum) a step, so that
    ``weight_decay`` means what it means in L2 recipes; for Adam this is AdamW.
    """
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, momentum=recipe.momentum)
    # On a CPU torch's fused steps pair up the wrong elements where a gradient's or a buffer's memory format is not its
    # parameter's (torch 2.13), and gain nothing with channels_last.
    fused = all(parameter.device.type != "cpu" for group in groups for parameter in group["params"])
    quick = {"fused": True} if fused else {"foreach": True}
    if recipe.optimizer == "adam":
        adam = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
        return adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), **quick)
    kind = DecoupledSGD if recipe.decoupled else torch.optim.SGD
    return kind(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, **quick)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None = None) -> None:
    """Set the learning rate of the next step, each group's by its multiple, and the momentum (Adam: β₁) if it is given.

    A rate that is a tensor (of a recorded step) is filled, not replaced.
    """
    for group in optimizer.param_groups:
        rate = lr * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors under flat names, "parameter index.slot"; rates are the schedule's affair."""
    return {
        f"{index}.{slot}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what ``optimizer_tensors`` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
