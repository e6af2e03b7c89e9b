"""Layers named as people write them: ``layer3[-2]``, ``layer3.0``, a module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from whycam.errors import WhycamError, near_misses
from whycam.nn_utils import is_opaque, takes_hooks, unwrapped, wrapped_by

LayerLike = str | nn.Module
_TOKEN = re.compile(r"\[(-?\d+)\]|\.?([A-Za-z_]\w*|\d+)")


@dataclass(frozen=True)
class Layer:
    """A resolved layer.

    Attributes:
        name: as the user wrote it; results are found under it.
        path: as ``named_modules`` calls it in the network that `whycam.nn_utils.unwrapped` gives.
        module: the module itself.
    """

    name: str
    path: str
    module: nn.Module


def resolve_layers(model: nn.Module, layers: Sequence[LayerLike] | LayerLike) -> tuple[Layer, ...]:
    """Resolve one or more layers; see `resolve_layer`.

    Raises:
        WhycamError: none is given, one is unknown, or one is named twice.
    """
    if isinstance(layers, str | nn.Module):
        layers = [layers]
    if not isinstance(layers, Iterable):
        raise WhycamError(f"layers are names or modules, or a list of them; got {layers!r}")
    if not (layers := list(layers)):
        raise WhycamError("no layer is given; leave layers out for the last spatial one")
    resolved = tuple(resolve_layer(model, layer) for layer in layers)
    seen: dict[str, str] = {}
    for layer in resolved:
        if layer.name in seen:
            raise WhycamError(f"layer {layer.name!r} is given twice")
        seen[layer.name] = layer.path
    return resolved


def resolve_layer(model: nn.Module, layer: LayerLike) -> Layer:
    """Find one layer.

    Args:
        model: the network, also in its wrappers.
        layer: a path with attributes and indices mixed freely (``layer3[-2]``, ``layer3.0``, ``blocks[3].norm``),
            or a module that is part of ``model``. Wrappers around it and inside it (``torch.compile``,
            ``DataParallel``) may be named in the path or left out: of a wrapped ``net``, ``net.module[0]`` and
            ``net[0]`` are both the first layer of what was wrapped.

    Raises:
        WhycamError: there is no such layer (near misses are listed), or no hook ever sees it.
    """
    network = unwrapped(model)
    found = _find(model, network, layer)
    steps = found.path.split(".")
    holders = [network.get_submodule(".".join(steps[:count])) for count in range(len(steps))]
    if any(map(is_opaque, holders)) or not takes_hooks(found.module):
        raise WhycamError(
            f"layer {found.name!r} is part of a TorchScript or torch.export program, which cannot be looked into: put "
            "the nn.Module it was made from in its place, or choose a layer outside of it"
        )
    return found


def _find(model: nn.Module, network: nn.Module, layer: LayerLike) -> Layer:
    if isinstance(layer, nn.Module):
        for name, candidate in network.named_modules():
            if candidate is layer:
                return Layer(name or type(network).__name__, name, layer)
        raise WhycamError(f"the given {type(layer).__name__} module is not part of this model")
    if not isinstance(layer, str):
        raise WhycamError(f"a layer is a name like layer3[-2] or a module of the model; got {layer!r}")
    module = model
    path: list[str] = []
    for step in _steps(layer):
        child = _child(module, step)
        if child is None:
            tops = dict.fromkeys((network, model))
            paths = [name for top in tops for name, _ in top.named_modules(remove_duplicate=False) if name]
            inside = wrapped_by(module) or module
            children = ", ".join(_children(inside)) or "no layers inside"
            holds = f"{'.'.join(path) or type(model).__name__} has {children}"
            raise WhycamError(f"unknown layer {layer!r}{near_misses(layer, paths) or f' ({holds})'}")
        name, module = child
        path.append(name)
    place = next(name for name, candidate in model.named_modules() if candidate is network)
    found = ".".join(path)
    if not found.startswith(place):  # a wrapper around a wrapped one: it hands on to what it wraps
        return Layer(layer, "", network)
    return Layer(layer, found.removeprefix(place).removeprefix("."), module)


def _steps(layer: str) -> list[str | int]:
    """``layer3[-2].conv1`` → ["layer3", -2, "conv1"]."""
    steps: list[str | int] = []
    position = 0
    while position < len(layer):
        token = _TOKEN.match(layer, position)
        if token is None or (layer[position] == "." and position == 0):
            break
        steps.append(int(token.group(1)) if token.group(1) is not None else token.group(2))
        position = token.end()
    if position < len(layer) or not steps:
        raise WhycamError(
            f"layer {layer!r} is not a layer path; write it like layer3[-2], layer3.0 or features[28].conv"
        )
    return steps


def _child(module: nn.Module, step: str | int) -> tuple[str, nn.Module] | None:
    children = _children(module)
    if isinstance(step, str) and step in children:
        return step, children[step]
    inner = wrapped_by(module)
    if inner is not None:
        place = next(name for name, child in children.items() if child is inner)
        found = _child(inner, step)
        return None if found is None else (f"{place}.{found[0]}", found[1])
    # Places are counted as Python counts them in a ModuleList: also those that are empty. By items, since a scripted
    # module's children have nothing else.
    names = [name for name, _ in module._modules.items()]
    if isinstance(step, str) or not -len(names) <= step < len(names) or names[step] not in children:
        return None
    return names[step], children[names[step]]


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """By name. Unlike ``named_children``, which leaves repeats out, with every place of a module that is used again."""
    return {name: child for name, child in module._modules.items() if child is not None}
