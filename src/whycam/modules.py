"""Small things that every room does with a user's module, each in one place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

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
    return next((tensor for _, part in _members(output) if (tensor := first_tensor(part)) is not None), None)


def with_first_tensor(output: object, replacement: Tensor) -> Any:
    """``output`` with the tensor that `first_tensor` finds replaced, in containers of the same types.

    What else it holds is handed on as it is; ``output`` itself is not changed.

    Raises:
        WhycamError: there is no such tensor.
    """
    if isinstance(output, Tensor):
        return replacement
    for place, member in _members(output):
        if first_tensor(member) is not None:
            return _exchanged(output, {place: with_first_tensor(member, replacement)})
    raise WhycamError(f"a {type(output).__name__} without any tensor has none to be replaced")


def rows_of(output: object, images: int, rows: Tensor) -> Any:
    """What of a network's output for ``images`` images belongs to those at ``rows`` (n,).

    Tensors as long as the batch are indexed, also inside tuples, lists, mappings and dataclasses; so is a list (or
    tuple) with one mapping or object per image, as detectors return it. Everything else is handed on as it is.
    """
    if isinstance(output, Tensor):
        return output[rows.to(output.device)] if output.ndim and len(output) == images else output
    if is_per_image(output, images):
        chosen = [output[row] for row in rows.tolist()]  # type: ignore[index]
        return tuple(chosen) if isinstance(output, tuple) else chosen
    members = list(_members(output))
    return _exchanged(output, {place: rows_of(part, images, rows) for place, part in members}) if members else output


def is_per_image(output: object, images: int) -> bool:
    """Whether it is a list with a mapping or object of its own for each image, and not one tensor for all."""
    entries = isinstance(output, tuple | list) and not hasattr(output, "_fields") and len(output) == images
    return entries and all(isinstance(entry, Mapping) or is_dataclass(entry) for entry in output)  # type: ignore[attr-defined]


def _members(output: object) -> Iterator[tuple[Any, object]]:
    """A container's contents with their places; nothing where it is none."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    elif is_dataclass(output) and not isinstance(output, type):
        yield from ((field.name, getattr(output, field.name)) for field in fields(output))


def _exchanged(container: Any, changes: Mapping[Any, object]) -> Any:
    """A shallow copy with some members exchanged, of the same type."""
    if isinstance(container, tuple | list):
        members: list[Any] = [changes.get(place, member) for place, member in enumerate(container)]
        return type(container)(*members) if hasattr(container, "_fields") else type(container)(members)
    if isinstance(container, Mapping) and not isinstance(container, MutableMapping):
        raise WhycamError(f"a {type(container).__name__} cannot be altered; choose the layer inside it")
    result = copy.copy(container)
    for place, member in changes.items():
        if isinstance(container, Mapping):
            result[place] = member
        else:
            object.__setattr__(result, place, member)
    return result


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
