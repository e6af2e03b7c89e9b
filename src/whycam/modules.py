"""Small things that every room does with a user's module, each in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch
import torch.fx
from torch import Tensor, nn

from whycam.errors import WhycamError


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every single module has the mode it had before.

    ``model.train()`` on the way out would not do: it would also switch on what the user had frozen. Neither would
    ``model.eval()`` on the way in, which some modules (adapters that merge their weights, say) do more in than switch.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def first_tensor(output: object) -> Tensor | None:
    """The leading tensor of a module's output: itself, or the first found in a tuple, list, dict or dataclass."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        members = list(output.values())
    elif isinstance(output, tuple | list):
        members = list(output)
    elif is_dataclass(output):
        members = [getattr(output, field.name) for field in fields(output)]
    else:
        return None
    return next((tensor for member in members if (tensor := first_tensor(member)) is not None), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers.

    Raises:
        WhycamError: the model is a TorchScript or ``torch.export`` program, whose inside no hook ever sees.
    """
    if not isinstance(model, nn.Module):
        raise WhycamError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise WhycamError("a TorchScript module cannot be looked into: pass the nn.Module it was made from")
    inner = model._modules.get("_orig_mod")
    if inner is not None:
        return unwrapped(inner)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    if isinstance(model, torch.fx.GraphModule) and hasattr(model, "_guards_fn"):
        raise WhycamError("a torch.export program cannot be looked into: pass the nn.Module it was made from")
    return model
