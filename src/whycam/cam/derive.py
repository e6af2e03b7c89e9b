"""Derive every map from the passes of one explanation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

from whycam.cam.maps import Key
from whycam.cam.methods.registry import Method
from whycam.cam.passes.runner import PassRunner
from whycam.cam.passes.trace import INPUT, LayerTrace
from whycam.errors import WhycamError


def method_target(name: str, method: Method) -> str:
    """The name in the plan of the target that ``method`` explains for the user's target ``name``."""
    return name if method.retarget is None else f"{name}|{method.name}"


def derive(runner: PassRunner, methods: Sequence[Method], targets: Sequence[str]) -> dict[Key, Tensor]:
    """Every (method, layer, target) map of one explanation, reduced in at least float32.

    The layer name of a map is all layers' names joined by "+" for methods with scope "layers", and `INPUT` for methods
    with scope "input".

    Args:
        runner: has captured what the methods need.
        methods: to compute.
        targets: the user's names of the targets.

    Raises:
        WhycamError: a layer has no map, or a method returns no map or changes its trace in place.
    """
    names = [layer.name for layer in runner.plan.layers]
    maps: dict[Key, Tensor] = {}
    # Methods compute in full precision, also if the caller uses autocast.
    with (
        torch.set_grad_enabled(runner.plan.differentiable),
        torch.autocast(runner.images.device.type, enabled=False),
    ):
        if any(method.scope != "input" for method in methods):
            for name in names:
                _check_positions(name, runner.activation_map(name).shape)
        for layers, target, method in _jobs(names, targets, methods):
            views = [runner.view(name, method_target(target, method)) for name in layers]
            maps[method.name, "+".join(layers), target] = _map_of(method, views)
    return maps


def _jobs(
    layers: Sequence[str], targets: Sequence[str], methods: Sequence[Method]
) -> Iterator[tuple[Sequence[str], str, Method]]:
    """(layers to read, target, method) of every map: first layer by layer, then the maps of other scopes."""
    for name, target, method in product(layers, targets, methods):
        if method.scope == "layer":
            yield [name], target, method
    for target, method in product(targets, methods):
        if method.scope != "layer":
            yield (layers if method.scope == "layers" else [INPUT]), target, method


def _map_of(method: Method, views: Sequence[LayerTrace]) -> Tensor:
    expected = views[0].activations
    with _forbid_inplace(method, views):
        result: object = method(views if method.scope == "layers" else views[0])
    if isinstance(result, Tensor) and result.ndim == expected.ndim - 1 and len(result) == len(expected):
        return result
    got = f"a {tuple(result.shape)} tensor" if isinstance(result, Tensor) else type(result).__name__
    raise WhycamError(
        f"method {method.name!r} returns {got}; a map has one value for each image and position, for example the shape "
        f"{(len(expected), *expected.shape[2:])}"
    )


@contextmanager
def _forbid_inplace(method: Method, views: Sequence[LayerTrace]) -> Iterator[None]:
    """Refuse a method that changes the tensors that all methods read."""
    shared = ("activations", "gradients", "hvp", "logits", "scores")
    tensors = [(name, tensor, tensor._version) for view in views for name in shared for tensor in [getattr(view, name)]]
    yield
    for name, tensor, version in tensors:
        if tensor._version != version:
            raise WhycamError(
                f"method {method.name!r} changes the {name} in place, which all methods read: it has to copy them first"
            )


def _check_positions(name: str, shape: torch.Size) -> None:
    if len(shape) < 3:
        raise WhycamError(f"layer {name!r} has the output shape {tuple(shape)}; a map needs (B, C, h, w)")
    if shape[2:].numel() <= 1:
        raise WhycamError(
            f"layer {name!r} has the output shape {tuple(shape)}: a single position, so there is no map; choose an "
            "earlier layer"
        )
