"""Run what follows a layer on something else than what the layer gave."""

from __future__ import annotations

from torch import Tensor, nn

from whycam.cam.capture import with_first_tensor
from whycam.cam.inputs import Inputs
from whycam.cam.layers import Layer


class Tail:
    """What of ``model`` comes after ``layer``, for one batch of inputs.

    Args:
        model: in eval mode whenever it is called.
        layer: whose output is replaced.
        inputs: the batch that the rows refer to.
    """

    def __init__(self, model: nn.Module, layer: Layer, inputs: Inputs) -> None:
        self.model, self.layer, self.inputs = model, layer, inputs

    def __call__(self, outputs: Tensor, rows: Tensor) -> object:
        """The network's output where ``layer`` gives ``outputs`` (n, …) for the images at ``rows`` (n,)."""

        def replace(_module: nn.Module, _inputs: object, output: object) -> object:
            return with_first_tensor(output, outputs.clone())

        given = self.inputs.with_images(self.inputs.images[rows.to(outputs.device)], rows)
        handle = self.layer.module.register_forward_hook(replace)
        try:
            return self.model(*given.args, **given.kwargs)
        finally:
            handle.remove()
