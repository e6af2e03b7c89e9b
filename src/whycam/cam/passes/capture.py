"""Capture the activations and gradients of every layer with one forward pass and one backward pass per target.

The network runs on detached parameters, so the graph begins only at the shallowest target layer, whose output becomes
a leaf. `torch.autograd.grad` then goes from the scores to the captured activations only: it computes no gradient of a
weight, and none before that layer. This makes the backward pass cheap.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module

from whycam._lazy import renamed_attribute
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.environment import explaining
from whycam.cam.passes.plan import Plan
from whycam.cam.targets.classification import Target
from whycam.cam.targets.resolve import freeze, leading, scores_of, wants_output
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor, hooked, with_first_tensor


class NoGradientError(WhycamError):
    """The scores cannot be differentiated with respect to a layer."""


@dataclass(frozen=True)
class Trace:
    """The result of one capture, on the model's device. Tensors are detached unless the plan is differentiable.

    Attributes:
        activations: layer name → (B, …), the layer's output as it was before any later in-place change.
        gradients: (layer name, target name) → like the activations, ∂score/∂activation.
        logits: (B, K), or the leading tensor that the network returns for B images; (B, 0) if it returns none.
        scores: target name → (B,).
        targets: target name → the frozen target; see `whycam.cam.targets.resolve.freeze`.
        hvp: (layer name, target name) → like the activations, the Hessian-vector product H·A, if the plan has it.
        returns_tensor: whether the network returns one tensor and nothing else.
        input_leaf: the images at which the graph begins, if the plan keeps that graph.
        graph_scores: target name → (B,), the scores at the end of that graph.
    """

    activations: dict[str, Tensor]
    gradients: dict[tuple[str, str], Tensor]
    logits: Tensor
    scores: dict[str, Tensor]
    targets: dict[str, Target]
    hvp: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    returns_tensor: bool = True
    input_leaf: Tensor | None = None
    graph_scores: dict[str, Tensor] = field(default_factory=dict)

    curvature = renamed_attribute("curvature", "hvp")
    plain = renamed_attribute("plain", "returns_tensor")
    root = renamed_attribute("root", "input_leaf")
    rooted = renamed_attribute("rooted", "graph_scores")


def capture(
    model: nn.Module,
    inputs: Inputs | Tensor,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    *,
    gradients: bool | Collection[str] = True,
    hvp: Collection[str] = (),
    differentiable: bool = False,
    curvature: Collection[str] = (),
) -> Trace:
    """Run ``model`` once and take the scores' gradients at the outputs of ``layers``.

    Args:
        model: unwrapped; not changed.
        inputs: (B, C, H, W) as the model expects them, or several arguments. Inference tensors are accepted.
        layers: whose outputs are recorded.
        targets: name → target.
        gradients: the names of the targets whose gradients are needed; True for all, False for none.
        hvp: the names of the targets for which H·A is needed too.
        differentiable: keep the graph, down to the parameters and through the gradients themselves.
        curvature: the old name of ``hvp``.

    Raises:
        WhycamError: a layer did not run or returned no tensor, or the scores do not depend on it.
    """
    if curvature:
        warnings.warn("capture(curvature=...) is now capture(hvp=...)", DeprecationWarning, stacklevel=2)
        hvp = curvature
    chosen = tuple(targets) if gradients is True else tuple(gradients or ())
    plan = Plan(tuple(layers), targets, chosen, tuple(hvp), differentiable=differentiable)
    inputs = Inputs.of(inputs) if isinstance(inputs, Tensor) else inputs
    with explaining(model):
        return run_capture(model, inputs.without_inference_tensors(), plan)


def run_capture(model: nn.Module, inputs: Inputs, plan: Plan) -> Trace:
    """Capture what ``plan`` asks for; see `capture`.

    Raises:
        WhycamError: a layer did not run or returned no tensor, or the scores do not depend on it.
    """
    outputs: dict[str, Tensor] = {}
    record = _recorder(outputs, leaf=bool(plan.differentiated), batch=len(inputs.images))
    with explaining(model), torch.set_grad_enabled(plan.needs_graph):
        inputs, parameters, leaf = _detached(model, inputs, plan)
        # The detached parameters and the hooks stay until the backward pass is over: a checkpointed block runs again
        # during it and needs the same parameters and hooks. Fused attention has no second derivative.
        with (
            hooked((layer.module, record(layer.name)) for layer in plan.layers),
            _reparametrize_module(model, parameters, tie_weights=True),
            sdpa_kernel(SDPBackend.MATH) if plan.needs_double_backward else nullcontext(),
        ):
            output = model(*inputs.args, **inputs.kwargs)
            _check_all_ran(plan.layers, outputs)
            logits = _leading(output, inputs.images, plan.targets)
            targets = {
                name: target if plan.frozen else freeze(target, logits, output) for name, target in plan.targets.items()
            }
            scores = {name: scores_of(target, logits, output) for name, target in targets.items()}
            # A copy of the dictionary: checkpointed blocks run again in the backward pass and call the hooks again.
            recorded = dict(outputs)
            gradients, products = _backward(scores, recorded, plan)

    def detached(tensor: Tensor) -> Tensor:
        return tensor if plan.differentiable else tensor.detach()

    return Trace(
        activations={name: detached(tensor) for name, tensor in recorded.items()},
        gradients={key: detached(tensor) for key, tensor in gradients.items()},
        logits=detached(logits),
        scores={name: detached(score) for name, score in scores.items()},
        targets=targets,
        hvp={key: detached(tensor) for key, tensor in products.items()},
        returns_tensor=isinstance(output, Tensor),
        input_leaf=leaf,
        graph_scores=scores if plan.keep_input_graph else {},
    )


def _detached(model: nn.Module, inputs: Inputs, plan: Plan) -> tuple[Inputs, dict[str, Tensor], Tensor | None]:
    """The inputs and parameters that the network runs on, and the images as a leaf if the plan keeps their graph.

    The network gets copies of the images, because it may change them in place.
    """
    if plan.differentiable:
        inputs = inputs.with_images(inputs.images.clone())
        parameters: dict[str, Tensor] = dict(model.named_parameters())
    else:
        inputs = inputs.detached()
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not plan.keep_input_graph:
        return inputs, parameters, None
    leaf = inputs.images.detach().clone().requires_grad_()
    return inputs.with_images(leaf.clone()), parameters, leaf


Gradients = dict[tuple[str, str], Tensor]
"""(layer name, target name) → a tensor like the layer's output."""


def _backward(scores: Mapping[str, Tensor], outputs: Mapping[str, Tensor], plan: Plan) -> tuple[Gradients, Gradients]:
    """∂score/∂output of every target in the plan at every layer, and H·A for the targets that need it."""
    gradients: Gradients = {}
    products: Gradients = {}
    for position, target in enumerate(plan.differentiated):
        score, last = scores[target], position + 1 == len(plan.differentiated)
        if not score.requires_grad:
            raise NoGradientError(
                f"the score of target {target!r} does not depend on {_names(outputs)} in a differentiable way"
            )
        twice = plan.differentiable or target in plan.hvp
        # In eval mode images are independent, so the gradient of the summed scores holds each image's own gradient.
        output_gradients = differentiate(
            score.sum(),
            list(outputs.values()),
            retain_graph=twice or plan.keep_input_graph or not last,
            create_graph=twice,
        )
        for name, gradient in zip(outputs, output_gradients, strict=True):
            if gradient is None:
                raise NoGradientError(f"the score of target {target!r} does not depend on layer {name!r}")
            gradients[name, target] = gradient
            if target in plan.hvp:
                products[name, target] = _hvp(gradient, outputs[name], keep=plan.differentiable)
    return gradients, products


def _hvp(gradient: Tensor, activation: Tensor, *, keep: bool) -> Tensor:
    """H·A: the derivative of Σ G·A with respect to A with the factor A held constant; 0 if G does not depend on A."""
    if not gradient.requires_grad:
        return torch.zeros_like(activation)
    vector = activation if keep else activation.detach()
    (product,) = differentiate(gradient, [activation], vector, retain_graph=True, create_graph=keep)
    return torch.zeros_like(activation) if product is None else product


def _recorder(outputs: dict[str, Tensor], *, leaf: bool, batch: int) -> Callable[[str], Callable[..., object]]:
    """Return a function: layer name → forward hook that stores the layer's output in ``outputs``.

    Args:
        outputs: layer name → output, filled by the hooks.
        leaf: make the stored output a leaf of the graph, if no graph leads to it.
        batch: number of images, for checks.
    """

    def hook_for(name: str) -> Callable[..., object]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            tensor = _checked_output(name, output, batch)
            if leaf and not tensor.requires_grad:
                if not torch.is_grad_enabled():
                    raise NoGradientError(f"layer {name!r} runs where the model switches gradients off")
                tensor = tensor.detach().requires_grad_()
            outputs[name] = tensor
            # Hand the rest of the network a copy: an in-place ReLU would overwrite the recorded activation.
            return with_first_tensor(output, tensor.clone())

        return hook

    return hook_for


def _checked_output(name: str, output: object, batch: int) -> Tensor:
    tensor = first_tensor(output)
    if tensor is None or tensor.ndim < 3:
        shape = type(output).__name__ if tensor is None else f"a {tuple(tensor.shape)} tensor"
        raise WhycamError(f"layer {name!r} returns {shape}; a map needs an output with positions, (B, C, h, w)")
    if len(tensor) != batch:
        raise WhycamError(
            f"layer {name!r} returns a {tuple(tensor.shape)} tensor for {batch} images: its first axis is not "
            "the images'; choose a layer before they are taken apart or after they are together again"
        )
    return tensor


def _check_all_ran(layers: Sequence[Layer], outputs: Mapping[str, Tensor]) -> None:
    for layer in layers:
        if layer.name not in outputs:
            raise WhycamError(f"layer {layer.name!r} did not run in the forward pass, so it cannot be explained")


def _leading(output: object, images: Tensor, targets: Mapping[str, Target]) -> Tensor:
    """The leading tensor, whose first axis is the batch; it may be missing if every target reads the whole output."""
    logits = leading(output, len(images))
    if logits is not None:
        return logits
    if all(map(wants_output, targets.values())):
        return images.new_zeros(len(images), 0)
    tensor = first_tensor(output)
    got = type(output).__name__ if tensor is None else f"a {tuple(tensor.shape)} tensor"
    raise WhycamError(f"the model must return (B, K) logits, got {got}")


def _names(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(map(repr, outputs))
