"""Copies of a network with reinitialized parameters, for the model parameter randomization test."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from whycam.cam.network.layers import resolve_layers
from whycam.errors import WhycamError
from whycam.nn_utils import refuse_opaque_parts, unwrapped
from whycam.seeds import derive_seed, generator

Order = Literal["cascading", "independent"]
# Exactly these types: a subclass is a block of its own.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STD = 0.02  # the usual initialization of tokens and position tables in transformers


def reinitialized_by_part(
    model: nn.Module, *, order: Order = "cascading", parts: Sequence[str] | str | None = None, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network with reinitialized parts: one part after the other, or one part at a time.

    Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (arXiv:1810.03292).

    Each module of a part is reinitialized by its own ``reset_parameters()``, which also resets the running statistics
    of a BatchNorm. If no such method changes a parameter (class tokens, layer scales), its values are shuffled. If all
    its values are equal, shuffling would change nothing: they are then drawn from a normal distribution around 0, whose
    standard deviation is the value's magnitude, or 0.02 if the value is 0. The new values depend only on the seed and
    on the module's path in the network, not on the device, the order or the other parts.

    By default the parts are the network's children. A ``Sequential``, ``ModuleList`` or ``ModuleDict``, and any module
    with more than half of all parameters, is split into its own children in the same way; parameters that it owns
    directly form a part of their own. Parts come in reverse order of registration, which is assumed to be the reverse
    order of execution; if it is not, give ``parts``.

    Args:
        model: not changed. If it is wrapped (``DataParallel``, ``torch.compile``), the network inside is copied.
        order: "cascading" reinitializes everything from the output down to the part, the part included; "independent"
            reinitializes the part alone.
        parts: names of submodules, from the output to the input: ``["linear", "layer4[-1]"]``.
        seed: seeds all new values; the global generators are not used or changed.

    Returns:
        An iterator over (name of the part, copy). Each copy is made when the iterator reaches it, and has the training
        or evaluation mode of the original.

    Raises:
        WhycamError: the order is unknown, a part is unknown, given twice or without parameters, or the network cannot
            be inspected or copied.
    """
    if order not in get_args(Order):
        raise WhycamError(f"order is {' or '.join(map(repr, get_args(Order)))}, not {order!r}")
    network = _checked_network(model)
    chosen = _default_parts(network) if parts is None else _named_parts(model, parts)
    return _copies(network, chosen, order, seed)


def reinitialized(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy with all parts reinitialized: the last copy of `reinitialized_by_part` in cascading order.

    Raises:
        WhycamError: the network has no parameters, or cannot be inspected or copied.
    """
    network = _checked_network(model)
    return _copy_with(network, _default_parts(network), seed)


def _checked_network(model: nn.Module) -> nn.Module:
    network = unwrapped(model)
    refuse_opaque_parts(network, "the randomization test reinitializes the parameters")
    if any(is_lazy(parameter) for parameter in network.parameters()):
        raise WhycamError(
            "the model has lazy parameters, which get values with the first batch: call model(images) once"
        )
    return network


@dataclass(frozen=True)
class _Part:
    """A part to reinitialize.

    Attributes:
        name: its name in the results.
        paths: the modules whose own tensors are reinitialized.
        resets: whether their ``reset_parameters`` may be called. It may not be for a module that was split, because it
            could reset the children too.
    """

    name: str
    paths: tuple[str, ...]
    resets: bool = True


def _copies(network: nn.Module, parts: Sequence[_Part], order: Order, seed: int) -> Iterator[tuple[str, nn.Module]]:
    for place, part in enumerate(parts):
        # Keep no reference to the copy here: the caller can then free it before the next one is made.
        yield part.name, _copy_with(network, parts[: place + 1] if order == "cascading" else [part], seed)


def _copy_with(network: nn.Module, parts: Sequence[_Part], seed: int) -> nn.Module:
    """A copy of the network with these parts reinitialized."""
    with torch.inference_mode(False), torch.no_grad():
        # deepcopy refuses tensors that are not leaves, such as a weight computed by weight_norm or an activation that a
        # module keeps: copy these in advance.
        kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
        memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
        try:
            copied = copy.deepcopy(network, memo)
        except (RuntimeError, TypeError) as error:
            raise WhycamError(
                f"the {type(network).__name__} cannot be copied ({str(error).partition('. ')[0]}): remove the "
                "attribute that copy.deepcopy refuses"
            ) from error
        for part in parts:
            for path in part.paths:
                _reinitialize(copied.get_submodule(path), path, seed, resets=part.resets)
    return copied


def _reinitialize(module: nn.Module, path: str, seed: int, *, resets: bool) -> None:
    """Reinitialize a module's own parameters in place."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    device = tensors[0].device
    _move(module, torch.device("cpu"))  # so that the values do not depend on the device
    own = dict(module.named_parameters(recurse=False))
    before = {name: (parameter.clone(), parameter._version) for name, parameter in own.items()}
    reset = getattr(module, "reset_parameters", None)
    if resets and callable(reset):
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the generators of all devices.
            torch.default_generator.manual_seed(derive_seed("randomize", seed, path))
            reset()
    draw = generator("shuffle", seed, path)
    for name, parameter in own.items():
        values, version = before[name]
        # Neither condition alone is enough: a change through .data does not raise the version, and a reset to the same
        # values does.
        if getattr(module, name) is parameter and parameter._version == version and torch.equal(parameter, values):
            parameter.copy_(_shuffled(values, draw))
    _move(module, device)


def _move(module: nn.Module, device: torch.device) -> None:
    """``module.to(device)``, without its children."""
    module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]


def _shuffled(values: Tensor, draw: torch.Generator) -> Tensor:
    flat = values.flatten()
    if values.is_floating_point() and len(flat) and bool((flat == flat[0]).all()):
        return torch.randn(values.shape, generator=draw) * (float(flat[0].abs()) or _STD)
    return flat[torch.randperm(len(flat), generator=draw)].view(values.shape)


def _named_parts(model: nn.Module, names: Sequence[str] | str) -> list[_Part]:
    if not names:
        raise WhycamError("no part is given; omit parts to use the default parts")
    found = [_Part(layer.name, _paths(layer.module, layer.path)) for layer in resolve_layers(model, names)]
    for part in found:
        if not part.paths:
            raise WhycamError(f"part {part.name!r} has no parameters to reinitialize")
    return found


def _default_parts(network: nn.Module) -> list[_Part]:
    """The parts from the last registered module to the first."""
    half = _size(network) / 2
    found: list[_Part] = []

    def split(path: str, module: nn.Module) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            found.append(_Part(path or type(network).__name__, (path,), resets=False))
        for name, child in module.named_children():
            place = f"{path}.{name}" if path else name
            if next(child.children(), None) is not None and (type(child) in _CONTAINERS or _size(child) > half):
                split(place, child)
            elif paths := _paths(child, place):
                found.append(_Part(place, paths))

    split("", network)
    if not found:
        raise WhycamError(f"the {type(network).__name__} has no parameters to reinitialize")
    return found[::-1]


def _paths(module: nn.Module, path: str) -> tuple[str, ...]:
    """The paths of the module and its descendants that own parameters, or buffers that ``reset_parameters`` resets."""

    def owns(part: nn.Module) -> bool:
        resets = hasattr(part, "reset_parameters") and next(part.buffers(recurse=False), None) is not None
        return resets or next(part.parameters(recurse=False), None) is not None

    within = f"{path}." if path else ""
    return tuple(f"{within}{name}" if name else path for name, part in module.named_modules() if owns(part))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
