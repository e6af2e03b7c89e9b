"""One forward, one backward: the activations and gradients that every gradient method is derived from.

How the work is kept to what is needed: the network runs on detached parameters, so no graph exists until the
shallowest target layer, whose output becomes the leaf. `torch.autograd.grad` then goes from the scores to the captured
activations only, never into a weight and never below that leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from whycam.cam.layers import Layer
from whycam.cam.targets import Target, scores_of
from whycam.errors import WhycamError
from whycam.modules import first_tensor, in_eval_mode


@dataclass(frozen=True)
class Trace:
    """What one capture saw; tensors are detached and on the model's device.

    Attributes:
        activations: layer name → (B, C, h, w), the layer's output before anything later changed it in place.
        gradients: (layer name, target name) → (B, C, h, w), ∂score/∂activation.
        logits: (B, K).
        scores: target name → (B,).
    """

    activations: dict[str, Tensor]
    gradients: dict[tuple[str, str], Tensor]
    logits: Tensor
    scores: dict[str, Tensor]


def capture(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    *,
    gradients: bool = True,
) -> Trace:
    """Run ``model`` once forward and, for each target, once backward to the activations of all ``layers``.

    The model is run in eval mode and is afterwards exactly as it was: mode of every module, ``requires_grad``,
    ``.grad``, hooks, buffers; also after an exception.

    Args:
        model: takes (B, C, H, W) and returns (B, K) logits, or a tuple, dict or dataclass that begins with them.
        inputs: (B, C, H, W), as the model expects them. May come from under ``inference_mode``.
        layers: where to look.
        targets: name → target.
        gradients: False when no method needs them: the run then builds no graph at all.

    Raises:
        WhycamError: a layer did not run, gave no tensor, or the scores do not depend on it.
    """
    outputs: dict[str, Tensor] = {}
    with torch.inference_mode(False), in_eval_mode(model), torch.set_grad_enabled(gradients):
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        # An inference tensor cannot be saved for a backward pass; its copy can.
        x = inputs.clone() if inputs.is_inference() else inputs.detach()
        with _recording(layers, outputs, leaf=gradients):
            logits = _logits(functional_call(model, parameters, (x,)), len(x))
        for layer in layers:
            if layer.name not in outputs:
                raise WhycamError(f"layer {layer.name!r} did not run in the forward pass, so it cannot be explained")
        scores = {name: scores_of(target, logits) for name, target in targets.items()}
        slopes = _gradients(scores, outputs) if gradients else {}
    return Trace(
        activations={name: tensor.detach() for name, tensor in outputs.items()},
        gradients=slopes,
        logits=logits.detach(),
        scores={name: score.detach() for name, score in scores.items()},
    )


def _gradients(scores: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    result: dict[tuple[str, str], Tensor] = {}
    last = len(scores) - 1
    for position, (target, score) in enumerate(scores.items()):
        if not score.requires_grad:
            raise WhycamError(
                f"the score of target {target!r} does not depend on {_names(outputs)} in a differentiable way"
            )
        # In eval mode images do not mix, so the gradient of the sum is every image's own gradient.
        slopes = torch.autograd.grad(
            score.sum(), list(outputs.values()), retain_graph=position < last, allow_unused=True
        )
        for name, slope in zip(outputs, slopes, strict=True):
            if slope is None:
                raise WhycamError(f"the score of target {target!r} does not depend on layer {name!r}")
            result[name, target] = slope
    return result


@contextmanager
def _recording(layers: Sequence[Layer], outputs: dict[str, Tensor], *, leaf: bool) -> Iterator[None]:
    """Hook ``layers`` so that ``outputs`` receives what they return; the hooks are gone afterwards."""

    def hook_for(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim < 3:
                shape = type(output).__name__ if tensor is None else f"a {tuple(tensor.shape)} tensor"
                raise WhycamError(f"layer {name!r} returns {shape}; a map needs an output with positions, (B, C, h, w)")
            if leaf and not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            outputs[name] = tensor
            # What follows may work in place (an in-place ReLU is the usual case): it gets a copy, so that the
            # recorded tensor stays the layer's own output, and a leaf is never modified.
            return _with_first_tensor(output, tensor.clone())

        return hook

    handles: list[RemovableHandle] = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_hook(hook_for(layer.name)))  # type: ignore[arg-type]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_first_tensor(output: object, replacement: Tensor) -> object:
    """``output`` with its leading tensor replaced, in the same container."""
    if isinstance(output, Tensor):
        return replacement
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        rest = (replacement, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    if isinstance(output, list) and isinstance(output[0], Tensor):
        return [replacement, *output[1:]]
    raise WhycamError(f"a layer that returns a {type(output).__name__} cannot be captured; choose the layer inside it")


def _logits(output: object, images: int) -> Tensor:
    logits = first_tensor(output)
    if logits is None or logits.ndim != 2 or len(logits) != images:
        got = type(output).__name__ if logits is None else f"a {tuple(logits.shape)} tensor"
        raise WhycamError(f"the model must return (B, K) logits, got {got}")
    # Half-precision logits would make scores too coarse to differentiate well.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _names(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(map(repr, outputs))
