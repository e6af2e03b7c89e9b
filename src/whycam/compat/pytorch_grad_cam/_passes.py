"""The three ways through a network that grad-cam's classes need; none changes it or leaves anything behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from whycam.nn_utils import first_tensor, instrumented, takes_hooks, unwrapped, with_first_tensor

Transform = Callable[[Any], Tensor]
_TARGET = "target"


@dataclass
class Seen:
    """What one pass saw, layer by layer in the order asked for; None where a layer has none.

    Attributes:
        targets: one per image.
        output: what the network returned.
        activations: (B, C, …positions).
        gradients: as activations.
        curvature: as activations, H·A.
        input_gradient: (B, C, H, W).
        ran: the layers' places in the list that was given; where a layer did not run it is left out.
    """

    targets: tuple[ImageTarget, ...]
    output: Any
    activations: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    curvature: list[Tensor] = field(default_factory=list)
    input_gradient: Tensor | None = None
    ran: list[int] = field(default_factory=list)


def named(layers: Iterable[nn.Module]) -> list[Layer]:
    """Layers under names of their own, so that one may be listed twice.

    Raises:
        WhycamError: one is no module, or one that no hook sees.
    """
    known = [Layer(f"{type(module).__name__} [{place}]", "", module) for place, module in enumerate(layers)]
    for layer in known:
        if not isinstance(layer.module, nn.Module):
            raise WhycamError(
                f"target_layers is a list of modules, got {layer.module!r} in it: write [model.layer4[-1]], say"
            )
        if not takes_hooks(layer.module):
            raise WhycamError(
                f"target layer {layer.name} is part of a TorchScript program, which cannot be looked into"
            )
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
    seen = Seen(fixed.members, fixed.output, ran=list(range(len(known))))
    for layer in known:
        read = _reader(trace.activations[layer.name], images, layer, transform)
        seen.activations.append(read(trace.activations[layer.name]))
        seen.gradients.append(read(trace.gradients[layer.name, _TARGET]))
        if curvature:
            seen.curvature.append(read(trace.hvp[layer.name, _TARGET]))
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
            fixed(output)  # says what is wrong
    assert fixed.members is not None
    seen = Seen(fixed.members, rows, ran=list(range(len(known))))
    for layer in known:
        if layer.name not in kept:
            raise WhycamError(f"layer {layer.name!r} did not run in the forward pass, so it cannot be explained")
        output = kept[layer.name]
        tensor = output if transform is not None else first_tensor(output)
        if tensor is None:
            raise WhycamError(f"layer {layer.name!r} returns {type(output).__name__}: give a reshape_transform")
        seen.activations.append(_reader(tensor, images, layer, transform)(tensor))
    return seen


def to_the_input(
    model: nn.Module, images: Tensor, layers: Sequence[nn.Module], targets: ImageTargets, transform: Transform | None
) -> Seen:
    """One forward, one backward to the layers and on to the images; layers that do not take part are left out."""
    network, known = unwrapped(model), named(layers)
    kept: dict[str, Tensor] = {}

    def keep(layer: Layer, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or not tensor.requires_grad:
            return None
        kept[layer.name] = tensor
        # What follows may overwrite its input.
        return with_first_tensor(output, tensor.clone())

    with torch.inference_mode(False), torch.enable_grad(), instrumented(network), hooks(known, keep):
        leaf = images.detach().clone().requires_grad_()
        frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
        output = functional_call(network, frozen, (leaf,))
        rows = per_image(output)
        fixed = targets.freeze(rows) if isinstance(rows, Tensor) else targets
        score = fixed(output).sum()
        found = differentiate(score, [*kept.values(), leaf])
    assert fixed.members is not None
    seen = Seen(fixed.members, fixed.output, input_gradient=found[-1])
    gradients = dict(zip(kept, found[:-1], strict=True))
    for place, layer in enumerate(known):
        gradient = gradients.get(layer.name)
        if gradient is not None:
            read = _reader(kept[layer.name], images, layer, transform)
            seen.activations.append(read(kept[layer.name].detach()))
            seen.gradients.append(read(gradient))
            seen.ran.append(place)
    return seen


def score(model: nn.Module, images: Tensor, targets: Sequence[ImageTarget]) -> Tensor:
    """The targets' scores (n,) of other images, one target each."""
    network = unwrapped(model)
    with torch.no_grad(), instrumented(network):
        scores = ImageTargets(targets)(network(images))
    return scores.float() if scores.dtype.itemsize < 4 else scores


def rerunner(model: nn.Module, images: Tensor, layer: nn.Module, targets: Sequence[ImageTarget]) -> Scorer:
    """Scores of what follows ``layer`` on other outputs than its own: (outputs (n, …), rows (n,)) → (n,)."""
    known = named([layer])
    # The outputs are handed on as they are, in whatever layout the layer has: to the engine that is "channels first".
    network, plan = unwrapped(model), Plan(tuple(known), {_TARGET: ImageTargets(targets)})
    with explaining(network):
        runner = PassRunner(network, Inputs.of(images).without_inference_tensors(), plan, layouts={"": Layout()})

    def score(outputs: Tensor, rows: Tensor) -> Tensor:
        with explaining(network):
            return runner.score_activations(known[0].name, outputs, rows, _TARGET).scores

    return score


Scorer = Callable[[Tensor, Tensor], Tensor]


def chunks(rows: Tensor, size: int) -> list[Tensor]:
    """``rows`` in pieces of at most ``size``; none where there are none."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@contextmanager
def hooks(layers: Sequence[Layer], see: Callable[[Layer, Any], Any]) -> Iterator[None]:
    """Call ``see`` with what each layer returns, inside the block only; what ``see`` returns takes its place."""

    def hook_for(layer: Layer) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda _module, _inputs, output: see(layer, output)

    handles = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_hook(hook_for(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(output: Any, images: Tensor, layer: Layer, transform: Transform | None) -> Transform:
    """How to read a layer's output as (B, C, …positions), in single precision at least."""
    if transform is None:
        # grad-cam cannot read tokens without a reshape_transform; their grid can be found.
        tokens = output.ndim == 3 and images.ndim == 4
        transform = detect_layout(output, images.shape[2:], layer.module).to_map if tokens else _as_it_is
    chosen = transform

    def read(tensor: Any) -> Tensor:
        shaped = chosen(tensor)
        return shaped.float() if shaped.dtype in (torch.float16, torch.bfloat16) else shaped

    return read


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
