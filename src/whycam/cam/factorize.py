"""Deep feature factorization (Collins et al., 2018, arXiv:1806.10206): a layer's activations as a few concepts.

A concept is a direction in channel space; its map says how strong the concept is at each position. Concepts are found
from the activations alone, without any class; their scores say how much each concept contributes to each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.inspect import default_layer
from whycam.cam.maps import resize
from whycam.cam.network.head import pooled_linear_head
from whycam.cam.network.inputs import Inputs, InputsLike
from whycam.cam.network.layers import Layer, LayerLike, resolve_layer
from whycam.cam.network.layout import Layout, check_layout, detect_layout, hints_for
from whycam.cam.passes.capture import capture
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, unwrapped
from whycam.options import Count, checked
from whycam.seeds import generator


@dataclass(frozen=True, eq=False)
class Factorization:
    """A ≈ offset + Σ_k map_k · concept_k, all but the offset non-negative, for the whole batch with the same concepts.

    Attributes:
        concepts: (n, C), each of length 1; those that explain most come first.
        maps: (B, n, …positions), the strength of each concept at each position; comparable between concepts and images.
        offset: (C,), each channel's smallest value if that is negative, else 0.
        error: |A − reconstruction| / |A − offset|, between 0 and 1: the share that the concepts do not explain.
        scores: (n, K), the contribution of each concept to each class; None if the network has no linear head.
        layer: its name.
        size: (H, W) of the images.
    """

    concepts: Tensor
    maps: Tensor
    offset: Tensor
    error: float
    scores: Tensor | None
    layer: str
    size: tuple[int, ...]

    def heatmaps(self) -> Tensor:
        """The maps on [0, 1] at the images' size, (B, n, H, W); 1 is each concept's own maximum over the batch."""
        top = self.maps.transpose(0, 1).flatten(1).amax(dim=1).view(-1, *[1] * (self.maps.ndim - 2))
        unit = torch.where(top > 0, self.maps / torch.where(top > 0, top, 1), 0)
        return resize(unit.flatten(0, 1), self.size).reshape(*self.maps.shape[:2], *self.size)


def factorize(
    model: nn.Module,
    images: InputsLike,
    layer: LayerLike | None = None,
    concepts: int = 8,
    *,
    classifier: Callable[[Tensor], Tensor] | None = None,
    layout: Layout | None = None,
    seed: int = 0,
    iterations: Count = 200,
) -> Factorization:
    """Factorize a batch's activations at a layer into concepts.

    Args:
        model: any module; not changed.
        images: (B, C, H, W) float, normalized as the model expects; all images share the concepts.
        layer: a name (``layer4[-1]``) or module; by default the last spatial one.
        concepts: number of concepts.
        classifier: (n, C) → (n, K), computes the concepts' scores. By default the weights of the last linear layer
            without its bias, if only a mean over positions and that linear layer follow ``layer``. Then
            bias + Σ_k mean(map_k) · score_k is the logit, except for the part that the concepts do not explain.
        layout: the layout of channels and positions in the layer's output; detected by default.
        seed: for the random start; another start may find other concepts.
        iterations: maximum number of iterations; it stops earlier if little changes.

    Returns:
        A `Factorization`, on the model's device.

    Raises:
        WhycamError: the layer is unknown or has no map, its activations are not finite, or ``concepts`` does not fit.

    Example:
        >>> import torch, whycam
        >>> model, spec = whycam.load("cifar10-resnet18")
        >>> whycam.factorize(model, torch.rand(4, 3, 32, 32), "layer4[-1]", concepts=3).maps.shape
        torch.Size([4, 3, 4, 4])
    """
    checked("factorize", factorize, {"concepts": concepts, "seed": seed, "iterations": iterations})
    check_layout(layout)
    network, inputs = unwrapped(model), Inputs.of(images)
    found = default_layer(network, inputs) if layer is None else resolve_layer(model, layer)
    trace = capture(network, inputs, [found], {}, gradients=False)
    activations = _activation_maps(network, inputs, found, trace.activations[found.name], layout)
    x = activations.transpose(0, 1).flatten(1)
    if not 1 <= concepts <= min(x.shape):
        raise WhycamError(f"{concepts} concepts cannot be distinguished here: give a number from 1 to {min(x.shape)}")
    if not bool(x.isfinite().all()):
        raise WhycamError(f"layer {found.name!r} gives NaN or infinite values for these images")
    offset = x.amin(dim=1).clamp(max=0)
    x = x - offset[:, None]
    w, h = _unit_concepts(*nmf(x, *_random_start(x, concepts, seed), iterations=iterations))
    size = x.norm()
    return Factorization(
        concepts=w.T.contiguous(),
        maps=h.reshape(concepts, len(activations), *activations.shape[2:]).transpose(0, 1).contiguous(),
        offset=offset,
        error=float((x - w @ h).norm() / size) if size > 0 else 0.0,
        scores=_concept_scores(network, activations, trace.logits, w, classifier),
        layer=found.name,
        size=tuple(inputs.images.shape[2:]),
    )


def _activation_maps(network: nn.Module, inputs: Inputs, layer: Layer, output: Tensor, layout: Layout | None) -> Tensor:
    """The layer's output as (B, C, …positions), at least float32."""
    if layout is None:
        size = inputs.images.shape[2:]
        layout = detect_layout(output, size, layer.module, hints_for(network, size))
    activations = at_least_float32(layout.to_map(output))
    if activations.ndim < 3 or activations[0, 0].numel() <= 1:
        raise WhycamError(
            f"layer {layer.name!r} has the output shape {tuple(output.shape)}: there is no map to factorize; choose an "
            "earlier layer"
        )
    return activations


def _random_start(x: Tensor, concepts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random non-negative factors, (C, n) and (n, N), whose product has about the mean of ``x`` (C, N)."""
    draw = generator(seed, "factorize", concepts)
    level = (x.mean() / concepts).sqrt()
    shapes = ((x.shape[0], concepts), (concepts, x.shape[1]))
    w, h = (level * torch.randn(shape, generator=draw, dtype=torch.float64).abs().to(x) for shape in shapes)
    return w, h


def _unit_concepts(w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the concepts to length 1 and sort them, those that explain most first; the product stays the same.

    Only the product of concepts and maps is determined, so the maps are multiplied by the concepts' lengths.
    """
    lengths = w.norm(dim=0).clamp(min=torch.finfo(w.dtype).tiny)
    w, h = w / lengths, h * lengths[:, None]
    order = h.square().sum(dim=1).argsort(descending=True)
    return w[:, order], h[order]


def _concept_scores(
    network: nn.Module, activations: Tensor, logits: Tensor, w: Tensor, classifier: Callable[[Tensor], Tensor] | None
) -> Tensor | None:
    """(n, K), the contribution of each concept to each class, by ``classifier`` or the network's linear head."""
    if classifier is not None:
        with torch.no_grad():
            return classifier(w.T)
    head = pooled_linear_head(network, activations, logits)
    return None if head is None else w.T @ head.weight.detach().to(w).T


def nmf(x: Tensor, w: Tensor, h: Tensor, *, tolerance: float = 1e-4, iterations: int = 200) -> tuple[Tensor, Tensor]:
    """Factorize x ≈ w · h with non-negative factors by coordinate descent (Cichocki & Phan, 2009).

    Args:
        x: (C, N), non-negative.
        w: (C, n) to start from.
        h: (n, N) to start from.
        tolerance: stop when the violation of the optimality conditions has fallen to this share of the first one.
        iterations: maximum number of iterations.

    Returns:
        New w and h; the arguments are not changed.
    """
    w, ht = w.clone(), h.T.contiguous()
    first = 0.0
    for iteration in range(iterations):
        violation = _descend(w, ht.T @ ht, x @ ht) + _descend(ht, w.T @ w, x.T @ w)
        first = violation if iteration == 0 else first
        if violation <= tolerance * first:
            break
    return w, ht.T


def _descend(factor: Tensor, gram: Tensor, products: Tensor) -> float:
    """Update each column of ``factor`` once, in place; return the violation of the optimality conditions before."""
    violation = torch.zeros((), dtype=factor.dtype, device=factor.device)
    for column, second_derivative in enumerate(gram.diagonal().tolist()):
        gradient = factor @ gram[:, column] - products[:, column]
        values = factor[:, column]
        violation += torch.where(values == 0, gradient.clamp(max=0), gradient).abs().sum()
        if second_derivative:
            factor[:, column] = (values - gradient / second_derivative).clamp(min=0)
    return float(violation)
