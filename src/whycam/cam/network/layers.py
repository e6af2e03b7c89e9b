"""Find layers by their names (``layer3[-2]``, ``layer3.0``) or modules."""

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
        name: as the user wrote it; the key of the layer's results.
        path: its name in ``named_modules`` of the network that `whycam.nn_utils.unwrapped` returns.
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
    names: set[str] = set()
    for layer in resolved:
        if layer.name in names:
            raise WhycamError(f"layer {layer.name!r} is given twice")
        names.add(layer.name)
    return resolved


def resolve_layer(model: nn.Module, layer: LayerLike) -> Layer:
    """Find one layer.

    Args:
        model: the network, wrapped or not.
        layer: a path of attributes and indices (``layer3[-2]``, ``layer3.0``, ``blocks[3].norm``), or a module of
            ``model``. The path may contain or omit wrappers around and inside the model (``torch.compile``,
            ``DataParallel``): if ``net`` is wrapped, ``net.module[0]`` and ``net[0]`` both name its first layer.

    Raises:
        WhycamError: there is no such layer (similar names are listed), or hooks cannot reach it.
    """
    network = unwrapped(model)
    found = _find(model, network, layer)
    steps = found.path.split(".")
    parents = [network.get_submodule(".".join(steps[:count])) for count in range(len(steps))]
    if any(map(is_opaque, parents)) or not takes_hooks(found.module):
        raise WhycamError(
            f"layer {found.name!r} is part of a TorchScript or torch.export program, which cannot be inspected: put "
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
            roots = dict.fromkeys((network, model))
            paths = [name for root in roots for name, _ in root.named_modules(remove_duplicate=False) if name]
            inner = wrapped_by(module) or module
            children = ", ".join(_children(inner)) or "no layers inside"
            content = f"{'.'.join(path) or type(model).__name__} has {children}"
            raise WhycamError(f"unknown layer {layer!r}{near_misses(layer, paths) or f' ({content})'}")
        name, module = child
        path.append(name)
    prefix = next(name for name, candidate in model.named_modules() if candidate is network)
    full_path = ".".join(path)
    if not full_path.startswith(prefix):  # a wrapper inside a wrapper, which stands for the network itself
        return Layer(layer, "", network)
    return Layer(layer, full_path.removeprefix(prefix).removeprefix("."), module)


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
        wrapper_name = next(name for name, child in children.items() if child is inner)
        found = _child(inner, step)
        return None if found is None else (f"{wrapper_name}.{found[0]}", found[1])
    # Indices count children that are None too, as in a ModuleList. `items`, because a scripted module's children have
    # no other accessor.
    names = [name for name, _ in module._modules.items()]
    if isinstance(step, str) or not -len(names) <= step < len(names) or names[step] not in children:
        return None
    return names[step], children[names[step]]


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """Name → child. Unlike ``named_children``, this keeps a module that occurs under several names."""
    return {name: child for name, child in module._modules.items() if child is not None}
