"""Layers named as people write them: ``layer3[-2]``, ``layer3.0``, a module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from whycam.errors import WhycamError
from whycam.suggest import near_misses

LayerLike = str | nn.Module
_TOKEN = re.compile(r"\[(-?\d+)\]|\.?([A-Za-z_]\w*|\d+)")


@dataclass(frozen=True)
class Layer:
    """A resolved layer.

    Attributes:
        name: as the user wrote it; results are found under it.
        path: as ``named_modules`` calls it.
        module: the module itself.
    """

    name: str
    path: str
    module: nn.Module


def resolve_layers(model: nn.Module, layers: Sequence[LayerLike]) -> tuple[Layer, ...]:
    """Resolve each of ``layers``; see `resolve_layer`.

    Raises:
        WhycamError: none is given, one is unknown, or one is named twice.
    """
    if not layers:
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
        model: the network.
        layer: a path with attributes and indices mixed freely (``layer3[-2]``, ``layer3.0``, ``blocks[3].norm``),
            or a module that is part of ``model``.

    Raises:
        WhycamError: there is no such layer; near misses are listed.
    """
    if isinstance(layer, nn.Module):
        for name, candidate in model.named_modules():
            if candidate is layer:
                return Layer(name or type(model).__name__, name, layer)
        raise WhycamError(f"the given {type(layer).__name__} module is not part of this model")
    module = model
    path: list[str] = []
    for step in _steps(layer):
        child = _child(module, step)
        if child is None:
            paths = [name for name, _ in model.named_modules() if name]
            children = ", ".join(name for name, _ in module.named_children()) or "no layers inside"
            inside = f"{'.'.join(path) or type(model).__name__} has {children}"
            raise WhycamError(f"unknown layer {layer!r}{near_misses(layer, paths) or f' ({inside})'}")
        name, module = child
        path.append(name)
    return Layer(layer, ".".join(path), module)


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
    children = dict(module.named_children())
    if isinstance(step, str):
        return (step, children[step]) if step in children else None
    names = list(children)
    if not -len(names) <= step < len(names):
        return None
    return names[step], children[names[step]]
