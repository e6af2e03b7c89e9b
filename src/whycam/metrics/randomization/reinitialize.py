"""Copies of a network with parts of it drawn anew: what the model parameter randomization test compares with."""

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
# Not what is derived from them: that is a block with a name of its own.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STD = 0.02  # what transformers draw their tokens and tables with


def randomized(
    model: nn.Module, *, order: Order = "cascading", parts: Sequence[str] | str | None = None, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network in which ever more, or one part at a time, is drawn anew.

    Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (arXiv:1810.03292).

    Every module of a part is drawn anew by its own ``reset_parameters()``, which also resets a BatchNorm's running
    statistics. Parameters that no such method touches (class tokens, layer scales) have their values shuffled; where
    all are equal and shuffling would change nothing, they are drawn from a normal distribution around 0 whose standard
    deviation is the value's magnitude, or 0.02 where it is 0. What is drawn depends on the seed and the module's place
    in the network alone: on neither the device, nor the order, nor what else is drawn.

    By default the parts are the network's children, except that a ``Sequential``, ``ModuleList`` or ``ModuleDict``, and
    whatever holds more than half of all parameters, is taken apart in the same way; what is taken apart is a part
    itself only for the parameters it owns directly. They come in reverse order of registration, which is taken for the
    order of execution: give ``parts`` where it is another.

    Args:
        model: left as it was; of a wrapped one (``DataParallel``, ``torch.compile``) the network inside is copied.
        order: "cascading": everything from the output down to and including the part is new; "independent": the part
            alone.
        parts: names of submodules, from the output towards the input: ``["linear", "layer4[-1]"]``.
        seed: of everything that is drawn; the global generators are left alone.

    Returns:
        An iterator over (name of the part, the copy), each copy made when it is asked for, in the mode of the original.

    Raises:
        WhycamError: the order is neither of the two, a part is unknown, given twice or holds nothing that could be
            drawn, or the network cannot be looked into or copied.
    """
    if order not in get_args(Order):
        raise WhycamError(f"order is {' or '.join(map(repr, get_args(Order)))}, not {order!r}")
    network = _drawable_network(model)
    chosen = _default_parts(network) if parts is None else _named_parts(model, parts)
    return _copies(network, chosen, order, seed)


def reinitialized(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of which every part is drawn anew: the last that `randomized` gives in cascading order.

    Raises:
        WhycamError: the network has no parameters, or cannot be looked into or copied.
    """
    network = _drawable_network(model)
    return _reinitialized_part(network, _default_parts(network), seed)


def _drawable_network(model: nn.Module) -> nn.Module:
    network = unwrapped(model)
    refuse_opaque_parts(network, "the randomization test draws anew the parameters")
    if any(is_lazy(parameter) for parameter in network.parameters()):
        raise WhycamError("the model has parameters without values before it has seen a batch: call model(images) once")
    return network


@dataclass(frozen=True)
class _Part:
    """Something to draw anew.

    Attributes:
        name: what it is called.
        paths: the modules whose own tensors are drawn.
        resets: whether they may do it themselves; of a module that was taken apart, ``reset_parameters`` might reset
            its children too.
    """

    name: str
    paths: tuple[str, ...]
    resets: bool = True


def _copies(network: nn.Module, parts: Sequence[_Part], order: Order, seed: int) -> Iterator[tuple[str, nn.Module]]:
    for place, part in enumerate(parts):
        # Nothing here keeps hold of the copy, so that whoever lets go of it has room for the next.
        yield part.name, _reinitialized_part(network, parts[: place + 1] if order == "cascading" else [part], seed)


def _reinitialized_part(network: nn.Module, parts: Sequence[_Part], seed: int) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():
        # What is no leaf is refused: a weight that weight_norm computed, a tensor that was kept of the last pass.
        kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
        memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
        try:
            copied = copy.deepcopy(network, memo)
        except (RuntimeError, TypeError) as error:
            raise WhycamError(
                f"the {type(network).__name__} cannot be copied ({str(error).partition('. ')[0]}): take out of it what "
                "copy.deepcopy refuses"
            ) from error
        for part in parts:
            for path in part.paths:
                _redraw(copied.get_submodule(path), path, seed, resets=part.resets)
    return copied


def _redraw(module: nn.Module, path: str, seed: int, *, resets: bool) -> None:
    """Draw a module's own parameters anew, in place."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    device = tensors[0].device
    _move(module, torch.device("cpu"))  # one generator for all devices
    own = dict(module.named_parameters(recurse=False))
    before = {name: (parameter.clone(), parameter._version) for name, parameter in own.items()}
    reset = getattr(module, "reset_parameters", None)
    if resets and callable(reset):
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the generators of all devices.
            torch.default_generator.manual_seed(derive_seed("randomize", seed, path))
            reset()
    draw = generator("shuffle", seed, path)
    for name, parameter in own.items():
        values, version = before[name]
        # A change by way of .data does not count as one, and what was reset to the value it had was reset.
        if getattr(module, name) is parameter and parameter._version == version and torch.equal(parameter, values):
            parameter.copy_(_shuffled(values, draw))
    _move(module, device)


def _move(module: nn.Module, device: torch.device) -> None:
    """``module.to(device)`` without its children."""
    module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]


def _shuffled(values: Tensor, draw: torch.Generator) -> Tensor:
    flat = values.flatten()
    if values.is_floating_point() and len(flat) and bool((flat == flat[0]).all()):
        return torch.randn(values.shape, generator=draw) * (float(flat[0].abs()) or _STD)
    return flat[torch.randperm(len(flat), generator=draw)].view(values.shape)


def _named_parts(model: nn.Module, names: Sequence[str] | str) -> list[_Part]:
    if not names:
        raise WhycamError("no part is given; leave parts out for the network's own")
    found = [_Part(layer.name, _drawable(layer.module, layer.path)) for layer in resolve_layers(model, names)]
    for part in found:
        if not part.paths:
            raise WhycamError(f"part {part.name!r} has no parameters that could be drawn anew")
    return found


def _default_parts(network: nn.Module) -> list[_Part]:
    """From the last registered to the first."""
    most = _size(network) / 2
    found: list[_Part] = []

    def take_apart(path: str, module: nn.Module) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            found.append(_Part(path or type(network).__name__, (path,), resets=False))
        for name, child in module.named_children():
            place = f"{path}.{name}" if path else name
            if next(child.children(), None) is not None and (type(child) in _CONTAINERS or _size(child) > most):
                take_apart(place, child)
            elif paths := _drawable(child, place):
                found.append(_Part(place, paths))

    take_apart("", network)
    if not found:
        raise WhycamError(f"the {type(network).__name__} has no parameters, so that nothing can be drawn anew")
    return found[::-1]


def _drawable(module: nn.Module, path: str) -> tuple[str, ...]:
    """The paths of a module and all inside it that own parameters, or statistics that they reset."""

    def owns(part: nn.Module) -> bool:
        resets = hasattr(part, "reset_parameters") and next(part.buffers(recurse=False), None) is not None
        return resets or next(part.parameters(recurse=False), None) is not None

    within = f"{path}." if path else ""
    return tuple(f"{within}{name}" if name else path for name, part in module.named_modules() if owns(part))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
