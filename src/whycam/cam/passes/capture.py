"""One forward, one backward: the activations and gradients that every gradient method is derived from.

How the work is kept small: the network runs on detached parameters, so no graph exists until the shallowest target
layer, whose output becomes the leaf. `torch.autograd.grad` then goes from the scores to the captured activations only,
never into a weight and never below that leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.environment import assert_explaining, explaining
from whycam.cam.passes.plan import Plan
from whycam.cam.targets.classification import Target
from whycam.cam.targets.resolve import freeze, leading, scores_of, wants_output
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor, hooked, with_first_tensor


class NoGradientError(WhycamError):
    """The scores cannot be differentiated with respect to a layer."""


@dataclass(frozen=True)
class Trace:
    """What one capture recorded, on the model's device. Tensors are detached unless the plan is differentiable.

    Attributes:
        activations: layer name → (B, …), the layer's output before anything later changed it in place.
        gradients: (layer name, target name) → like the activations, ∂score/∂activation.
        logits: (B, K), or the leading tensor that the network returns for B images; (B, 0) if it returns none.
        scores: target name → (B,).
        targets: target name → the target, with everything fixed that it takes from the logits.
        hvp: (layer name, target name) → like the activations, the Hessian-vector product H·A, if it was planned.
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


def capture(
    model: nn.Module,
    inputs: Inputs | Tensor,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    *,
    gradients: bool | Collection[str] = True,
    hvp: Collection[str] = (),
    differentiable: bool = False,
) -> Trace:
    """Run ``model`` once and take the scores' gradients at the outputs of ``layers``.

    Args:
        model: unwrapped; afterwards as it was.
        inputs: (B, C, H, W) as the model expects them, or several arguments. May come from under ``inference_mode``.
        layers: whose outputs are recorded.
        targets: name → target.
        gradients: the targets whose gradients are needed, or True for all and False for none.
        hvp: the targets for which H·A is needed too.
        differentiable: keep the graph, down to the parameters and through the gradients themselves.

    Raises:
        WhycamError: a layer did not run or returned no tensor, or the scores do not depend on it.
    """
    chosen = tuple(targets) if gradients is True else tuple(gradients or ())
    plan = Plan(tuple(layers), targets, chosen, tuple(hvp), differentiable=differentiable)
    given = Inputs.of(inputs) if isinstance(inputs, Tensor) else inputs
    with explaining(model):
        return run_capture(model, given.without_inference_tensors(), plan)


def run_capture(model: nn.Module, inputs: Inputs, plan: Plan) -> Trace:
    """Do what ``plan`` says; see `capture`. Runs inside `explaining`.

    Raises:
        WhycamError: a layer did not run or returned no tensor, or the scores do not depend on it.
    """
    assert_explaining(model)
    outputs: dict[str, Tensor] = {}
    record = _recorder(outputs, leaf=bool(plan.differentiated), batch=len(inputs.images))
    with torch.set_grad_enabled(plan.needs_graph):
        given, parameters, leaf = _detached(model, inputs, plan)
        # The detached parameters and the hooks stay until the backward pass is over: a checkpointed block runs again in
        # it, and must find what it found before. Fused attention has no second derivative.
        with (
            hooked((layer.module, record(layer.name)) for layer in plan.layers),
            _reparametrize_module(model, parameters, tie_weights=True),
            sdpa_kernel(SDPBackend.MATH) if plan.needs_double_backward else nullcontext(),
        ):
            output = model(*given.args, **given.kwargs)
            _check_all_ran(plan.layers, outputs)
            logits = _leading(output, given.images, plan.targets)
            targets = {
                name: target if plan.frozen else freeze(target, logits, output) for name, target in plan.targets.items()
            }
            scores = {name: scores_of(target, logits, output) for name, target in targets.items()}
            # A copy: checkpointed blocks that run again in the backward pass call the hooks again.
            recorded = dict(outputs)
            gradients, products = _backward(scores, recorded, plan)

    def free(tensor: Tensor) -> Tensor:
        return tensor if plan.differentiable else tensor.detach()

    return Trace(
        activations={name: free(tensor) for name, tensor in recorded.items()},
        gradients={key: free(tensor) for key, tensor in gradients.items()},
        logits=free(logits),
        scores={name: free(score) for name, score in scores.items()},
        targets=targets,
        hvp={key: free(tensor) for key, tensor in products.items()},
        returns_tensor=isinstance(output, Tensor),
        input_leaf=leaf,
        graph_scores=scores if plan.keep_input_graph else {},
    )


def _detached(model: nn.Module, inputs: Inputs, plan: Plan) -> tuple[Inputs, dict[str, Tensor], Tensor | None]:
    """The inputs and parameters that the network runs on, and the images as a leaf if the plan keeps their graph.

    The network gets copies of the images, because it may change them in place.
    """
    if plan.differentiable:
        given = inputs.with_images(inputs.images.clone())
        parameters: dict[str, Tensor] = dict(model.named_parameters())
    else:
        given = inputs.detached()
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not plan.keep_input_graph:
        return given, parameters, None
    leaf = given.images.detach().clone().requires_grad_()
    return given.with_images(leaf.clone()), parameters, leaf


Gradients = dict[tuple[str, str], Tensor]
"""(layer name, target name) → a tensor like the layer's output."""


def _backward(scores: Mapping[str, Tensor], outputs: Mapping[str, Tensor], plan: Plan) -> tuple[Gradients, Gradients]:
    """∂score/∂output of every planned target at every layer, and H·A where it is planned."""
    gradients: Gradients = {}
    products: Gradients = {}
    for position, target in enumerate(plan.differentiated):
        score, last = scores[target], position + 1 == len(plan.differentiated)
        if not score.requires_grad:
            raise NoGradientError(
                f"the score of target {target!r} does not depend on {_names(outputs)} in a differentiable way"
            )
        twice = plan.differentiable or target in plan.hvp
        # In eval mode images do not mix, so the gradient of the sum is every image's own gradient.
        found = differentiate(
            score.sum(),
            list(outputs.values()),
            retain_graph=twice or plan.keep_input_graph or not last,
            create_graph=twice,
        )
        for name, gradient in zip(outputs, found, strict=True):
            if gradient is None:
                raise NoGradientError(f"the score of target {target!r} does not depend on layer {name!r}")
            gradients[name, target] = gradient
            if target in plan.hvp:
                products[name, target] = _hvp(gradient, outputs[name], keep=plan.differentiable)
    return gradients, products


def _hvp(gradient: Tensor, activation: Tensor, *, keep: bool) -> Tensor:
    """H·A: the derivative of Σ G·A in A, with the factor A held fixed; zero where G does not depend on A."""
    if not gradient.requires_grad:
        return torch.zeros_like(activation)
    vector = activation if keep else activation.detach()
    (product,) = differentiate(gradient, [activation], vector, retain_graph=True, create_graph=keep)
    return torch.zeros_like(activation) if product is None else product


def _recorder(outputs: dict[str, Tensor], *, leaf: bool, batch: int) -> Callable[[str], Callable[..., object]]:
    """Make forward hooks, by layer name, that put a layer's output into ``outputs``; ``leaf``: as a graph leaf."""

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
    """The tensor whose first axis is the batch; there need be none if every target reads the whole output."""
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
