"""The input of a method: one layer (or the images) for one target, and a backend that runs the network again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from whycam._lazy import renamed_attribute
from whycam.errors import WhycamError

INPUT = "input"
"""The layer name of the maps of methods that read the images instead of a layer."""


class ForwardBackend(Protocol):
    """Further passes over the network. No call changes the model or keeps a graph alive."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def images(self) -> Tensor:
        """(B, C, H, W), the batch that is explained."""

    @property
    def autocast(self) -> bool:
        """Whether the network runs under autocast. Methods themselves never run under it."""

    def reads_whole_output(self, target: str) -> bool:
        """Whether the target's score needs more than the logits, so that `score_logits` cannot compute it."""

    def score_images(self, images: Tensor, rows: Tensor, target: str) -> Scored:
        """Run the whole network on (n, C, H, W), perturbed copies of the images at ``rows`` (n,)."""

    def score_activations(self, layer: str, maps: Tensor, rows: Tensor, target: str) -> Scored:
        """Run what follows ``layer`` on (n, C, h, w), which replace its output for the images at ``rows`` (n,)."""

    def score_logits(self, logits: Tensor, rows: Tensor, target: str) -> Scored:
        """Score (n, K) logits of perturbed copies of the images at ``rows`` (n,), without running the network."""

    def trace_perturbed(
        self, key: str, perturb: Callable[[Tensor], Tensor], layer: str, target: str, *, mirror: bool = False
    ) -> LayerTrace:
        """Capture all layers and targets again on ``perturb(images)``, which is k concatenated copies of the batch.

        The result is cached under ``key`` while memory allows it, so ``perturb`` must return the same images each time.

        Args:
            key: identifies the perturbation.
            perturb: (B, C, H, W) → (k·B, C, H, W). Image b of each copy corresponds to image b of the batch, so
                targets with one value per image stay with their images.
            layer: whose trace is returned.
            target: for which target.
            mirror: whether the copies are mirrored; targets that depend on positions are then mirrored too.

        Returns:
            A trace whose backend runs on the perturbed images.
        """

    def image_gradient(self, images: Tensor, rows: Tensor, target: str, *, guided: bool = False) -> Tensor:
        """∂score/∂images, (n, C, H, W); ``guided`` lets only positive gradients through ReLUs."""

    def output_gradients(
        self, modules: Collection[nn.Module], target: str, report: Callable[[nn.Module, Tensor], None]
    ) -> Tensor:
        """∂score/∂images, (B, C, H, W), by one backward pass, and a forward pass unless the method needs "outputs".

        During the backward pass ``report(module, gradient)`` receives ∂score/∂output of each of ``modules`` that
        returns a tensor: once for each time that the module ran, the last run first. The gradient belongs to the output
        as the module returned it, even if that was changed in place later.
        """

    def generator(self, *purpose: int | str) -> torch.Generator:
        """A CPU generator that depends on the explanation's seed and the purpose alone."""


@dataclass(frozen=True)
class Scored:
    """The result of a further pass: (n, K) logits and the target's (n,) scores."""

    logits: Tensor
    scores: Tensor


def _empty() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True)
class LayerTrace:
    """The input of a method: one layer for one target. For scope "input", the layer is the batch of images.

    Attributes:
        activations: (B, C, …positions), at least float32.
        gradients: like the activations, ∂score/∂activations; empty (0 elements) if the method does not need them.
        logits: (B, K).
        scores: (B,), the target's.
        hvp: like the activations, the Hessian-vector product H·A, where H holds the second derivatives of the score
            with respect to the activations; empty if the method does not need it.
        layer: its name.
        target: its name.
        backend: runs the network again; None in a trace made by hand.
        per_channel: return one map per channel, (B, C, …), instead of their sum; only set for methods that are
            registered with ``per_channel``.
    """

    activations: Tensor
    gradients: Tensor
    logits: Tensor
    scores: Tensor
    hvp: Tensor = field(default_factory=_empty)
    layer: str = ""
    target: str = ""
    backend: ForwardBackend | None = None
    per_channel: bool = False

    @property
    def network(self) -> ForwardBackend:
        """The backend, which runs the network again.

        Raises:
            WhycamError: this trace was made without a backend.
        """
        if self.backend is None:
            raise WhycamError("this method runs the network again: call it through whycam.explain")
        return self.backend

    curvature = renamed_attribute("curvature", "hvp")
    in_terms = renamed_attribute("in_terms", "per_channel")
    runs = renamed_attribute("runs", "backend")

    def weighted(self, weights: Tensor, maps: Tensor | None = None) -> Tensor:
        """Σ_c w_c · A_c, (B, C) → (B, …), for the activations or ``maps`` (B, C, …); the terms if `per_channel`."""
        maps = self.activations if maps is None else maps
        if self.per_channel:
            return maps * weights.reshape(*weights.shape, *[1] * (maps.ndim - 2))
        return torch.einsum("bc...,bc->b...", maps, weights)

    def with_(self, **changes: Tensor) -> LayerTrace:
        """The same trace with some tensors replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]
