"""Score-CAM (arXiv:1910.01279)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM

_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}


class ScoreCAM(BaseCAM):
    """Channels weighed by the softmax of the scores that the image gets where they are active.

    Set ``batch_size`` for the number of masked images in one forward pass.
    """

    batch_size = 32

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    @on_device
    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Tensor,
        grads: Tensor | None,
    ) -> Tensor:
        """(B, C)."""
        images, channels = activations.shape[:2]
        flat = activations.flatten(2)
        alive = flat.amax(dim=2) > flat.amin(dim=2)
        scores = activations.new_zeros(images, channels, dtype=torch.float32)
        # A constant channel masks everything, whichever it is: its score is that of an empty image.
        empty = (~alive).any(dim=1).nonzero()[:, 0]
        for rows in _passes.chunks(empty, self.batch_size):
            blank = torch.zeros_like(input_tensor[rows])
            found = _passes.score(self.model, blank, [targets[row] for row in rows.tolist()])
            scores[rows] = found[:, None].to(scores.dtype)
        for pairs in _passes.chunks(alive.nonzero(), self.batch_size):
            rows, which = pairs[:, 0], pairs[:, 1]
            masks = _masks(activations[rows, which][:, None], input_tensor.shape[2:])
            masked = input_tensor[rows] * masks.to(input_tensor.dtype)
            found = _passes.score(self.model, masked, [targets[row] for row in rows.tolist()])
            scores[rows, which] = found.to(scores.dtype)
        return scores.softmax(dim=1)


def _masks(channels: Tensor, size: Sequence[int]) -> Tensor:
    """(n, 1, …) activations → (n, 1, *size) on [0, 1]."""
    masks = F.interpolate(channels, size=tuple(size), mode=_MODES[channels.ndim], align_corners=True)
    shape = (-1, *[1] * (masks.ndim - 1))
    low, high = masks.flatten(1).amin(dim=1).view(shape), masks.flatten(1).amax(dim=1).view(shape)
    return (masks - low) / (high - low + 1e-8)
