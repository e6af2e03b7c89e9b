"""Activations and gradients of chosen layers, for code that drives a network itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._passes import Seen, Transform, hooks, named
from whycam.nn_utils import first_tensor, with_first_tensor


class ActivationsAndGradients:
    """Keeps the layers' outputs when it is called, and their gradients when the caller runs the backward pass.

    The layers are hooked during a call only. Both lists are in the order of ``target_layers``; a layer without a
    gradient is missing from ``gradients``.

    Args:
        model: called as it is.
        target_layers: where to look.
        reshape_transform: turns a layer's output, and its gradient, into (B, C, …).
        detach: False keeps the graph, and leaves the reshaping to the caller.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None,
        detach: bool = True,
    ) -> None:
        self.model = model
        self.target_layers = target_layers
        self.reshape_transform = reshape_transform
        self.detach = detach
        self.handles: list[Any] = []
        self._seen = Seen()

    @property
    def activations(self) -> list[Tensor]:
        """One per layer; on the CPU unless they keep their graph."""
        return [self._given(tensor) for _, tensor in sorted(self._seen.activations.items())]

    @property
    def gradients(self) -> list[Tensor]:
        """One per layer that has one; on the CPU unless they keep their graph."""
        return [self._given(tensor) for _, tensor in sorted(self._seen.gradients.items())]

    def __call__(self, x: Tensor) -> Any:
        """The network's output; afterwards `activations` are there, after a backward pass `gradients` too."""
        self.clear()
        seen, known = self._seen, named(self.target_layers)
        places = {layer.name: place for place, layer in enumerate(known)}

        def keep(layer: Any, output: Any) -> Any:
            place = places[layer.name]
            tensor = first_tensor(output)
            seen.activations[place] = self._shaped(output).detach() if self.detach else output
            if tensor is None or not tensor.requires_grad:
                return None
            tensor.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: seen.gradients.update({place: self._shaped(gradient)})
            )
            # Hand on a copy: an in-place operation would overwrite what was kept.
            return with_first_tensor(output, tensor.clone())

        with hooks(known, keep):
            return self.model(x)

    def fill(self, seen: Seen) -> None:
        """Take over the result of a pass."""
        self._seen = Seen(activations=seen.activations, gradients=seen.gradients, curvature=seen.curvature)

    def at(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        """Activations and gradients of the layer at ``place``; None where there are none."""
        return self._seen.activations.get(place), self._seen.gradients.get(place)

    def curvature_at(self, place: int) -> Tensor:
        """H·A of the layer at ``place``."""
        return self._seen.curvature[place]

    def clear(self) -> None:
        """Drop everything that was kept."""
        self._seen = Seen()

    def release(self) -> None:
        """`clear`: there is no hook to remove."""
        self.clear()

    def _shaped(self, tensor: Any) -> Tensor:
        shaped: Tensor = tensor if self.reshape_transform is None or not self.detach else self.reshape_transform(tensor)
        return shaped

    def _given(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if self.detach else tensor
