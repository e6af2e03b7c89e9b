"""What a method is shown: one layer (or the images themselves) for one target, and the means to run the network again.

The rerunning side is the `ForwardBackend` protocol; `whycam.cam.passes.runner.Run` implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from whycam.errors import WhycamError


class ForwardBackend(Protocol):
    """The network again, on something else; no call changes the model or leaves a graph behind."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def images(self) -> Tensor:
        """(B, C, H, W) as they were given."""

    @property
    def mixed(self) -> bool:
        """Whether the network runs under autocast; methods themselves never do."""

    def reads_more(self, target: str) -> bool:
        """Whether the target's score takes more than logits, so that `score_logits` cannot know it."""

    def score_images(self, images: Tensor, rows: Tensor, target: str) -> Scored:
        """Run the whole network: (n, C, H, W) that stand in for the images at ``rows`` (n,)."""

    def score_activations(self, layer: str, maps: Tensor, rows: Tensor, target: str) -> Scored:
        """Run what follows ``layer``: (n, C, h, w) that stand in for its output on the images at ``rows`` (n,)."""

    def score_logits(self, logits: Tensor, rows: Tensor, target: str) -> Scored:
        """Run nothing at all: (n, K) logits known otherwise, of alterations of the images at ``rows`` (n,)."""

    def again(
        self, key: str, make: Callable[[Tensor], Tensor], layer: str, target: str, *, mirror: bool = False
    ) -> LayerTrace:
        """Capture all layers and targets anew on ``make(images)``; the batch may be k·B long.

        Once per ``key`` as long as what is kept is not too much, so ``make`` must give the same each time.

        Rows k·B … are copies of the batch, so that per-image targets keep their images; with ``mirror`` mirrored ones,
        and targets that look at places are mirrored with them. The trace that comes back has a network of its own:
        what a method runs again from there is the altered images.
        """

    def image_gradient(self, images: Tensor, rows: Tensor, target: str, *, guided: bool = False) -> Tensor:
        """∂score/∂images, (n, C, H, W); ``guided`` lets only positive gradients through ReLUs."""

    def output_gradients(
        self, modules: Collection[nn.Module], target: str, see: Callable[[nn.Module, Tensor], None]
    ) -> Tensor:
        """One backward pass, and a forward pass unless the method needs "outputs": ∂score/∂images, (B, C, H, W).

        On the way back ``see(module, gradient)`` is told ∂score/∂output of each of ``modules`` (that returns a tensor),
        as often as it ran, the last first; for the output as the module gave it, whatever later changed it in place.
        """

    def generator(self, *purpose: int | str) -> torch.Generator:
        """A CPU generator that depends on the explanation's seed and the purpose alone."""


@dataclass(frozen=True)
class Scored:
    """What a rerun gave: (n, K) logits and the target's (n,) scores."""

    logits: Tensor
    scores: Tensor


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True)
class LayerTrace:
    """What a method sees of one layer for one target. For scope "input", the layer is the batch of images.

    Attributes:
        activations: (B, C, …positions), at least float32.
        gradients: as activations, ∂score/∂activations; empty (0 elements) where the method does not need them.
        logits: (B, K).
        scores: (B,), the target's.
        curvature: as activations, H·A with H the second derivatives of the score in the activations; empty where the
            method does not need it.
        layer: its name.
        target: its name.
        runs: how to run the network again; None in a trace made by hand.
        per_channel: a method registered with ``has_channel_terms`` is asked for the terms of its sum over channels, (B,
            C, …).
    """

    activations: Tensor
    gradients: Tensor
    logits: Tensor
    scores: Tensor
    curvature: Tensor = field(default_factory=_nothing)
    layer: str = ""
    target: str = ""
    runs: ForwardBackend | None = None
    per_channel: bool = False

    @property
    def network(self) -> ForwardBackend:
        """The means to run the network again.

        Raises:
            WhycamError: this trace was made without any.
        """
        if self.runs is None:
            raise WhycamError("this method runs the network again: call it through whycam.explain")
        return self.runs

    def weighted(self, weights: Tensor, maps: Tensor | None = None) -> Tensor:
        """Σ_c w_c · A_c, (B, C) → (B, …), of the activations or other maps (B, C, …); its terms where asked for."""
        maps = self.activations if maps is None else maps
        if self.per_channel:
            return maps * weights.reshape(*weights.shape, *[1] * (maps.ndim - 2))
        return torch.einsum("bc...,bc->b...", maps, weights)

    def with_(self, **changes: Tensor) -> LayerTrace:
        """The same trace with some tensors exchanged."""
        return replace(self, **changes)  # type: ignore[arg-type]
