"""The passes through a network that grad-cam's classes need; none changes the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.network.layout import Layout, detect_layout
from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.capture import capture
from whycam.cam.passes.environment import explaining
from whycam.cam.passes.plan import Plan
from whycam.cam.passes.runner import PassRunner
from whycam.compat.pytorch_grad_cam._targets import ImageTarget, ImageTargets, per_image
from whycam.errors import WhycamError
from whycam.nn_utils import (
    at_least_float32,
    first_tensor,
    hooked,
    in_eval_mode,
    instrumented,
    takes_hooks,
    unwrapped,
    with_first_tensor,
)

Transform = Callable[[Any], Tensor]
Scorer = Callable[[Tensor, Tensor], Tensor]
_TARGET = "target"


@dataclass
class Seen:
    """The result of one pass; each tensor is found by its layer's place in the given list.

    Attributes:
        targets: one per image.
        output: what the network returned.
        activations: (B, C, …positions); a layer that took no part is left out.
        gradients: as activations.
        curvature: as activations, H·A.
        input_gradient: (B, C, H, W).
    """

    targets: tuple[ImageTarget, ...] = ()
    output: Any = None
    activations: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    curvature: dict[int, Tensor] = field(default_factory=dict)
    input_gradient: Tensor | None = None


def named(layers: Iterable[nn.Module]) -> list[Layer]:
    """Name each layer by its place, so that one layer may be listed twice.

    Raises:
        WhycamError: one is not a module, or takes no hooks.
    """
    known = [Layer(f"{type(module).__name__} [{place}]", "", module) for place, module in enumerate(layers)]
    for layer in known:
        if not isinstance(layer.module, nn.Module):
            raise WhycamError(
                f"target_layers is a list of modules, got {layer.module!r} in it: write [model.layer4[-1]], say"
            )
        if not takes_hooks(layer.module):
            raise WhycamError(f"target layer {layer.name} is part of a TorchScript program, which cannot be inspected")
    return known


def with_gradients(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[nn.Module],
    targets: ImageTargets,
    transform: Transform | None,
    *,
    curvature: bool = False,
    graph: bool = False,
) -> Seen:
    """One forward, one backward to the layers: `whycam.cam.passes.capture`."""
    known = named(layers)
    trace = capture(unwrapped(model), images, known, {_TARGET: targets}, hvp=(_TARGET,) if curvature else (),
                    differentiable=graph)  # fmt: skip
    fixed: Any = trace.targets[_TARGET]
    seen = Seen(fixed.members, fixed.output)
    for place, layer in enumerate(known):
        activation = trace.activations[layer.name]
        read = _reader(activation, images, layer, transform)
        seen.activations[place] = read(activation)
        seen.gradients[place] = read(trace.gradients[layer.name, _TARGET])
        if curvature:
            seen.curvature[place] = read(trace.hvp[layer.name, _TARGET])
    return seen


def without_gradients(
    model: nn.Module, images: Tensor, layers: Sequence[nn.Module], targets: ImageTargets, transform: Transform | None
) -> Seen:
    """One forward, no graph. A layer may return anything that ``transform`` turns into (B, C, …)."""
    network, known = unwrapped(model), named(layers)
    kept: dict[str, Any] = {}
    with torch.no_grad(), instrumented(network), hooks(known, lambda layer, output: kept.update({layer.name: output})):
        output = network(images)
        rows = per_image(output)
        fixed = targets.freeze(rows) if isinstance(rows, Tensor) else targets
        if fixed.members is None or len(fixed.members) != len(rows):
            fixed(output)  # raises the error that says why
    assert fixed.members is not None
    seen = Seen(fixed.members, rows)
    for place, layer in enumerate(known):
        if layer.name not in kept:
            raise WhycamError(f"layer {layer.name!r} did not run in the forward pass, so it cannot be explained")
        output = kept[layer.name]
        tensor = output if transform is not None else first_tensor(output)
        if tensor is None:
            raise WhycamError(f"layer {layer.name!r} returns {type(output).__name__}: give a reshape_transform")
        seen.activations[place] = _reader(tensor, images, layer, transform)(tensor)
    return seen


def to_the_input(
    model: nn.Module, images: Tensor, layers: Sequence[nn.Module], targets: ImageTargets, transform: Transform | None
) -> Seen:
    """One forward, one backward to the layers and on to the images; layers without a gradient are left out."""
    network, known = unwrapped(model), named(layers)
    kept: dict[str, Tensor] = {}

    def keep(layer: Layer, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or not tensor.requires_grad:
            return None
        kept[layer.name] = tensor
        # Hand on a copy: an in-place operation would overwrite the recorded output.
        return with_first_tensor(output, tensor.clone())

    with from_the_input(network, images, known, keep) as (leaf, output):
        rows = per_image(output)
        fixed = targets.freeze(rows) if isinstance(rows, Tensor) else targets
        found = differentiate(fixed(output).sum(), [*kept.values(), leaf])
    assert fixed.members is not None
    seen = Seen(fixed.members, fixed.output, input_gradient=found[-1])
    gradients = dict(zip(kept, found[:-1], strict=True))
    for place, layer in enumerate(known):
        gradient = gradients.get(layer.name)
        if gradient is not None:
            read = _reader(kept[layer.name], images, layer, transform)
            seen.activations[place] = read(kept[layer.name].detach())
            seen.gradients[place] = read(gradient)
    return seen


@contextmanager
def from_the_input(
    network: nn.Module, images: Tensor, layers: Sequence[Layer], see: Callable[[Layer, Any], Any]
) -> Iterator[tuple[Tensor, Any]]:
    """A copy of ``images`` that requires a gradient, and the network's output for it; weights require none."""
    with torch.inference_mode(False), torch.enable_grad(), instrumented(network), hooks(layers, see):
        leaf = images.detach().clone().requires_grad_()
        frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
        yield leaf, functional_call(network, frozen, (leaf,))


def outputs(model: nn.Module, images: Tensor) -> Any:
    """What the network returns for each image: (B, …), or a detector's list of B mappings."""
    network = unwrapped(model)
    with torch.no_grad(), in_eval_mode(network):
        return per_image(network(images))


def score(model: nn.Module, images: Tensor, targets: Sequence[ImageTarget]) -> Tensor:
    """The targets' scores (n,) of other images, one target each."""
    network = unwrapped(model)
    with torch.no_grad(), instrumented(network):
        return at_least_float32(ImageTargets(targets)(network(images)))


def rerunner(
    model: nn.Module, images: Tensor, layer: nn.Module, targets: Sequence[ImageTarget]
) -> tuple[Tensor, Scorer]:
    """The output of ``layer``, and scores of what follows it on other outputs: (n, …), rows (n,) → (n,)."""
    known = named([layer])
    # Outputs are given in the layer's own layout, so none is to be changed: "channels first" changes nothing.
    network, plan, name = unwrapped(model), Plan(tuple(known), {_TARGET: ImageTargets(targets)}), known[0].name
    with explaining(network):
        runner = PassRunner(network, Inputs.of(images).without_inference_tensors(), plan, layouts={"": Layout()})

    def score_outputs(outputs: Tensor, rows: Tensor) -> Tensor:
        with explaining(network):
            return runner.score_activations(name, outputs, rows, _TARGET).scores

    return runner.trace.activations[name], score_outputs


def hooks(layers: Sequence[Layer], see: Callable[[Layer, Any], Any]) -> AbstractContextManager[None]:
    """Hook the layers inside the block: ``see(layer, output)`` may return a new output, or None to keep it."""

    def hook_for(layer: Layer) -> Callable[..., Any]:
        return lambda _module, _inputs, output: see(layer, output)

    return hooked((layer.module, hook_for(layer)) for layer in layers)


def as_it_is(output: Any) -> Any:
    """The identity."""
    return output


def _reader(output: Any, images: Tensor, layer: Layer, transform: Transform | None) -> Transform:
    """How to read a layer's output as (B, C, …positions), in single precision at least."""
    if transform is None:
        # grad-cam cannot read tokens without a reshape_transform; their grid can be found.
        tokens = output.ndim == 3 and images.ndim == 4
        transform = detect_layout(output, images.shape[2:], layer.module).to_map if tokens else as_it_is
    chosen = transform
    return lambda tensor: at_least_float32(chosen(tensor))
