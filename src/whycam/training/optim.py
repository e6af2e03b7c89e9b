"""The optimizer of a recipe, and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whycam.training.muon import Muon
from whycam.training.recipe import Recipe
from whycam.training.sgd import DecoupledSGD


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into those with weight decay (two or more axes) and those without.

    The second group holds biases and normalization scales and shifts: shrinking them does not regularize the function.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by weight decay, learning-rate factor (``scale``), and ``orthogonal``."""
    weights, others = decay_groups(model)
    muon = recipe.optimizer == "muon"
    # Chosen by module type, not by shape: muon must not rescale position embeddings or layer scales.
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d) if muon else ()
    filter_ids = {id(module.weight) for module in model.modules() if isinstance(module, convolutions)}
    filters = [p for p in weights if id(p) in filter_ids]
    weights = [p for p in weights if id(p) not in filter_ids]
    # With the same learning rate, biases and gains share a group: fewer, larger kernels.
    separate = recipe.bias_rate != 1
    bias_ids = {id(p) for name, p in model.named_parameters() if separate and name.rpartition(".")[2] == "bias"}
    biases = [p for p in others if id(p) in bias_ids]
    gains = [p for p in others if id(p) not in bias_ids]
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
    """The recipe's optimizer over ``model``'s parameters.

    Decoupled decay (Loshchilov and Hutter, 2019, arXiv:1711.05101) multiplies the weights before the step and does not
    enter the momentum. SGD shrinks them by lr · weight_decay / (1 − momentum) per step, so that ``weight_decay`` has
    the same meaning as in L2 recipes. For Adam, decoupled decay is AdamW.
    """
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, momentum=recipe.momentum)
    # On a CPU, torch's fused steps are wrong where a gradient or a buffer has another memory format than its parameter
    # (torch 2.13), and they are no faster with channels_last.
    on_gpu = all(parameter.device.type != "cpu" for group in groups for parameter in group["params"])
    implementation = {"fused": True} if on_gpu else {"foreach": True}
    if recipe.optimizer == "adam":
        adam = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
        return adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), **implementation)
    kind = DecoupledSGD if recipe.decoupled else torch.optim.SGD
    return kind(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, **implementation)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None = None) -> None:
    """Set the learning rate of the next step, times each group's ``scale``, and the momentum (Adam: β₁) if given.

    A learning rate that is a tensor, as in a captured step, is filled and not replaced.
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
    """The optimizer's state as tensors named "parameter index.slot"; learning rates come from the schedule."""
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
