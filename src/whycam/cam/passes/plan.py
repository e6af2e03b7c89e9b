"""The passes that one explanation needs, determined before the first pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whycam.cam.network.layers import Layer
from whycam.cam.targets.classification import Target


@dataclass(frozen=True)
class Plan:
    """The passes of one explanation. Modules in `whycam.cam.passes` read the plan and do not depend on methods.

    Attributes:
        layers: whose outputs are recorded.
        targets: name → target, for every score that is computed.
        gradients: targets whose gradients at the layers are needed. If there are none, no graph is built.
        hvp: targets for which the Hessian-vector product H·A is needed as well: one more backward pass per layer.
        keep_input_graph: keep the graph from images to scores, so that later calls can differentiate with respect to
            the images.
        differentiable: keep the graph of everything, down to the parameters and through the gradients themselves.
        frozen: the targets were resolved on another batch (the unperturbed images); do not resolve them again.
    """

    layers: tuple[Layer, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()
    hvp: tuple[str, ...] = ()
    keep_input_graph: bool = False
    differentiable: bool = False
    frozen: bool = False

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The targets that need a backward pass; a Hessian-vector product needs the gradient too."""
        return tuple(dict.fromkeys((*self.gradients, *self.hvp)))

    @property
    def needs_graph(self) -> bool:
        """Whether the forward pass runs with gradients switched on."""
        return bool(self.differentiated) or self.differentiable or self.keep_input_graph

    @property
    def needs_double_backward(self) -> bool:
        """Whether gradients are differentiated themselves."""
        return bool(self.hvp) or self.differentiable
