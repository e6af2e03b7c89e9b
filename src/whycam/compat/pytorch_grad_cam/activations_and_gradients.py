"""Activations and gradients of chosen layers, for code that drives a network itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._passes import Seen, hooks, named
from whycam.nn_utils import first_tensor, with_first_tensor

Transform = Callable[[Any], Tensor]


class ActivationsAndGradients:
    """Keeps what layers return when it is called, and their gradients when the caller goes backward.

    The layers are hooked while it is called and at no other time. Both lists are in the order of ``target_layers``:
    a layer without a gradient is left out of ``gradients`` only at its own place's expense, never at another's.

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
        self._activations: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}
        self._curvature: list[Tensor] = []

    @property
    def activations(self) -> list[Tensor]:
        """One per layer; on the CPU unless they keep their graph."""
        return [self._given(self._activations[place]) for place in sorted(self._activations)]

    @property
    def gradients(self) -> list[Tensor]:
        """One per layer that has one; on the CPU unless they keep their graph."""
        return [self._given(self._gradients[place]) for place in sorted(self._gradients)]

    def __call__(self, x: Tensor) -> Any:
        """The network's output; afterwards `activations` are there, after a backward pass `gradients` too."""
        self.clear()
        known = named(self.target_layers)
        places = {layer.name: place for place, layer in enumerate(known)}

        def keep(layer: Any, output: Any) -> Any:
            place = places[layer.name]
            tensor = first_tensor(output)
            self._activations[place] = self._shaped(output).detach() if self.detach else output
            if tensor is None or not tensor.requires_grad:
                return None
            tensor.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._gradients.update({place: self._shaped(gradient)})
            )
            # What follows may overwrite its input, and with it what was kept.
            return with_first_tensor(output, tensor.clone())

        with hooks(known, keep):
            return self.model(x)

    def fill(self, seen: Seen) -> None:
        """Take over what a pass of the engine saw."""
        self.clear()
        self._activations = dict(zip(seen.ran, seen.activations, strict=True))
        self._gradients = dict(zip(seen.ran, seen.gradients, strict=False))
        self._curvature = seen.curvature

    def at(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        """Activations and gradients of the layer at ``place``, where they are."""
        return self._activations.get(place), self._gradients.get(place)

    def curvature_at(self, place: int) -> Tensor:
        """H·A of the layer at ``place``, where it was asked for."""
        return self._curvature[place]

    def clear(self) -> None:
        """Let go of everything kept."""
        self._activations, self._gradients, self._curvature = {}, {}, []

    def release(self) -> None:
        """The same: there is no hook to remove."""
        self.clear()

    def _shaped(self, tensor: Any) -> Tensor:
        shaped: Tensor = tensor if self.reshape_transform is None or not self.detach else self.reshape_transform(tensor)
        return shaped

    def _given(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if self.detach else tensor
