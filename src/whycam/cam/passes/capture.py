"""One forward, one backward: the activations and gradients that every gradient method is derived from.

How the work is kept to what is needed: the network runs on detached parameters, so no graph exists until the
shallowest target layer, whose output becomes the leaf. `torch.autograd.grad` then goes from the scores to the captured
activations only, never into a weight and never below that leaf.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.hooks import RemovableHandle

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.passes.autograd import differentiate
from whycam.cam.targets.classification import Target
from whycam.cam.targets.resolve import freeze, leading, scores_of, wants_output
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor, instrumented, with_first_tensor


class NoGradientError(WhycamError):
    """The scores cannot be differentiated in a layer."""


@dataclass(frozen=True)
class Trace:
    """What one capture saw, on the model's device; tensors are detached unless asked otherwise.

    Attributes:
        activations: layer name → (B, …), the layer's output before anything later changed it in place.
        gradients: (layer name, target name) → as activations, ∂score/∂activation.
        logits: (B, K), or whatever leading tensor the network returns for B images; (B, 0) where it returns none.
        scores: target name → (B,).
        targets: target name → the target, with what it takes from the logits fixed.
        curvature: (layer name, target name) → as activations, H·A, where it was asked for.
        plain: whether the network returns a tensor and nothing else.
        root: the images that the graph begins with, where it was asked to be kept.
        rooted: target name → (B,) the scores at that graph's end.
    """

    activations: dict[str, Tensor]
    gradients: dict[tuple[str, str], Tensor]
    logits: Tensor
    scores: dict[str, Tensor]
    targets: dict[str, Target]
    curvature: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    plain: bool = True
    root: Tensor | None = None
    rooted: dict[str, Tensor] = field(default_factory=dict)


def capture(
    model: nn.Module,
    inputs: Inputs | Tensor,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    *,
    gradients: bool | Collection[str] = True,
    curvature: Collection[str] = (),
    frozen: bool = False,
    differentiable: bool = False,
    rooted: bool = False,
) -> Trace:
    """Run ``model`` once forward and, for each target, once backward to the activations of all ``layers``.

    The model is run in eval mode and is afterwards exactly as it was: mode of every module, parameters,
    ``requires_grad``, ``.grad``, hooks; also after an exception. What its own ``forward`` writes in eval mode (a
    counter it keeps in a buffer, a tensor it caches) stays written.

    Args:
        model: returns (B, K) logits, or a tuple, dict or dataclass that begins with them.
        inputs: (B, C, H, W), as the model expects them, or several arguments. May come from under ``inference_mode``.
        layers: where to look.
        targets: name → target.
        gradients: the targets whose gradients are needed, or all or none; without any, no graph is built at all.
        curvature: the targets for which H·A is needed too: one more backward pass for each layer.
        frozen: targets have been fixed already, by the answer to other images than these.
        differentiable: keep the graph, down to the parameters and through the gradients themselves.
        rooted: keep the graph from the images to the scores, for gradients that are asked for later.

    Raises:
        WhycamError: a layer did not run, gave no tensor, or the scores do not depend on it.
    """
    sloped = list(targets) if gradients is True else list(gradients or ())
    sloped += [name for name in curvature if name not in sloped]
    outputs: dict[str, Tensor] = {}
    given = (Inputs.of(inputs) if isinstance(inputs, Tensor) else inputs).ordinary()
    with (
        torch.inference_mode(False),
        instrumented(model),
        torch.set_grad_enabled(bool(sloped) or differentiable or rooted),
    ):
        if differentiable:
            parameters: dict[str, Tensor] = dict(model.named_parameters())
            given = given.with_images(given.images.clone())
        else:
            parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
            given = given.detached()
        root = given.images.detach().clone().requires_grad_() if rooted else None
        if root is not None:
            given = given.with_images(root.clone())
        # The parameters' stand-ins and the hooks stay until the backward pass is over: a checkpointed block runs again
        # in it, and must find what it found before. Fused attention has no second derivative.
        twice = bool(curvature) or differentiable
        attention = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
        with (
            _recording(layers, outputs, leaf=bool(sloped), batch=len(given.images)),
            _reparametrize_module(model, parameters, tie_weights=True),
            attention,
        ):
            output = model(*given.args, **given.kwargs)
            for layer in layers:
                if layer.name not in outputs:
                    raise WhycamError(
                        f"layer {layer.name!r} did not run in the forward pass, so it cannot be explained"
                    )
            logits = _leading(output, given.images, targets)
            fixed = {n: target if frozen else freeze(target, logits, output) for n, target in targets.items()}
            scores = {name: scores_of(target, logits, output) for name, target in fixed.items()}
            seen = dict(outputs)
            slopes, curves = _gradients(scores, seen, sloped, curvature, keep=differentiable, rooted=rooted)

    def free(tensor: Tensor) -> Tensor:
        return tensor if differentiable else tensor.detach()

    return Trace(
        activations={name: free(tensor) for name, tensor in seen.items()},
        gradients={key: free(tensor) for key, tensor in slopes.items()},
        logits=free(logits),
        scores={name: free(score) for name, score in scores.items()},
        targets=fixed,
        curvature={key: free(tensor) for key, tensor in curves.items()},
        plain=isinstance(output, Tensor),
        root=root,
        rooted=scores if rooted else {},
    )


Slopes = dict[tuple[str, str], Tensor]


def _gradients(
    scores: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    sloped: Sequence[str],
    curved: Collection[str],
    *,
    keep: bool,
    rooted: bool,
) -> tuple[Slopes, Slopes]:
    slopes: Slopes = {}
    curves: Slopes = {}
    for position, target in enumerate(sloped):
        score, last = scores[target], position + 1 == len(sloped)
        if not score.requires_grad:
            raise NoGradientError(
                f"the score of target {target!r} does not depend on {_names(outputs)} in a differentiable way"
            )
        bend = target in curved
        # In eval mode images do not mix, so the gradient of the sum is every image's own gradient.
        found = differentiate(
            score.sum(),
            list(outputs.values()),
            retain_graph=keep or bend or rooted or not last,
            create_graph=keep or bend,
        )
        for name, slope in zip(outputs, found, strict=True):
            if slope is None:
                raise NoGradientError(f"the score of target {target!r} does not depend on layer {name!r}")
            slopes[name, target] = slope
            if bend:
                curves[name, target] = _bend(slope, outputs[name], keep=keep)
    return slopes, curves


def _bend(slope: Tensor, activation: Tensor, *, keep: bool) -> Tensor:
    """H·A: the derivative of Σ G·A in A, with the factor A held fixed; zero where G does not depend on A."""
    if not slope.requires_grad:
        return torch.zeros_like(activation)
    weights = activation if keep else activation.detach()
    (product,) = differentiate(slope, [activation], weights, retain_graph=True, create_graph=keep)
    return torch.zeros_like(activation) if product is None else product


@contextmanager
def _recording(layers: Sequence[Layer], outputs: dict[str, Tensor], *, leaf: bool, batch: int) -> Iterator[None]:
    """Hook ``layers`` so that ``outputs`` receives what they return; the hooks are gone afterwards."""

    def hook_for(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim < 3:
                shape = type(output).__name__ if tensor is None else f"a {tuple(tensor.shape)} tensor"
                raise WhycamError(f"layer {name!r} returns {shape}; a map needs an output with positions, (B, C, h, w)")
            if len(tensor) != batch:
                raise WhycamError(
                    f"layer {name!r} returns a {tuple(tensor.shape)} tensor for {batch} images: its first axis is not "
                    "the images'; choose a layer before they are taken apart or after they are together again"
                )
            if leaf and not tensor.requires_grad:
                if not torch.is_grad_enabled():
                    raise NoGradientError(f"layer {name!r} runs where the model switches gradients off")
                tensor = tensor.detach().requires_grad_()
            outputs[name] = tensor
            # What follows may work in place (an in-place ReLU is the usual case): it gets a copy, so that the
            # recorded tensor stays the layer's own output, and a leaf is never modified.
            return with_first_tensor(output, tensor.clone())

        return hook

    handles: list[RemovableHandle] = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_hook(hook_for(layer.name)))  # type: ignore[arg-type]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leading(output: object, images: Tensor, targets: Mapping[str, Target]) -> Tensor:
    """The tensor that begins with the batch; where all targets read the whole output, there need be none."""
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
