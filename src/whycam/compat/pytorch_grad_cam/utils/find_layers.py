"""Find layers by type or condition, and replace them (in the model that is given: this is the caller's wish)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: nn.Module) -> bool:
    """Put ``new_layer`` in the place of the first ``old_layer``; whether there was one."""
    for parent in model.modules():
        for name, layer in parent._modules.items():
            if layer is old_layer:
                parent._modules[name] = new_layer
                return True
    return False


def replace_all_layer_type_recursive(model: nn.Module, old_layer_type: type[nn.Module], new_layer: nn.Module) -> None:
    """Put ``new_layer`` in the place of every layer of a type."""
    for parent in list(model.modules()):
        for name, layer in parent._modules.items():
            if isinstance(layer, old_layer_type):
                parent._modules[name] = new_layer


def find_layer_types_recursive(model: nn.Module, layer_types: Collection[type[nn.Module]]) -> list[nn.Module]:
    """All layers whose type is one of ``layer_types`` exactly."""
    return find_layer_predicate_recursive(model, lambda layer: type(layer) in layer_types)


def find_layer_predicate_recursive(model: nn.Module, predicate: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """All layers inside ``model`` that satisfy ``predicate``, in the order they were registered; one used in several
    places is listed as often."""  # noqa: D205, D209 (one sentence)
    found: list[nn.Module] = []
    for layer in model._modules.values():
        if layer is None:
            continue
        if predicate(layer):
            found.append(layer)
        found.extend(find_layer_predicate_recursive(layer, predicate))
    return found
