"""Ablation-CAM (Desai & Ramaswamy, WACV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.cam.network.head import pooled_linear_head
from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array, on_device
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTarget, class_indices
from whycam.compat.pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit, switched_off
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.nn_utils import unwrapped


class AblationCAM(BaseCAM):
    """Channels weighed by the share of the score that is lost without them, (y − y_c) / y.

    The model is never taken apart: what a channel's absence does is found by handing other outputs on, or without
    running anything where only a mean over positions and one linear layer follow.

    Args:
        model: the network.
        target_layers: where to look.
        reshape_transform: turns a layer's output into (B, C, h, w).
        ablation_layer: how a channel is switched off; `AblationLayerVit` for token models.
        batch_size: channels per forward pass.
        ratio_channels_to_ablate: below 1, only the channels most and least inside the object get a pass of their own;
            the others count for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        ablation_layer: AblationLayer | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.batch_size = batch_size
        self.ablation_layer = AblationLayer() if ablation_layer is None else ablation_layer
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def assemble_ablation_scores(
        self, new_scores: Sequence[float], original_score: float, ablated_channels: Array, number_of_channels: int
    ) -> list[float]:
        """The ablated channels' scores in their places, the original one everywhere else."""
        result = np.full(number_of_channels, original_score, np.float32)
        result[np.asarray(ablated_channels)] = np.asarray(new_scores, np.float32)
        return list(result)

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
        original = _passes.score(self.model, input_tensor, targets)
        if (weights := self._closed_form(targets, activations, original)) is not None:
            return weights
        scores = original[:, None].repeat(1, activations.shape[1])
        plain = type(self.ablation_layer) in (AblationLayer, AblationLayerVit)
        fill = self._by_tail if plain else self._by_layer
        fill(scores, input_tensor, target_layer, targets, activations)
        return (original[:, None] - scores) / original[:, None]

    def _channels(self, image: Tensor) -> Tensor:
        chosen = self.ablation_layer.activations_to_be_ablated(image.cpu().numpy(), self.ratio_channels_to_ablate)
        return torch.as_tensor(np.asarray(chosen), dtype=torch.long)

    def _by_tail(
        self, scores: Tensor, images: Tensor, layer: nn.Module, targets: Sequence[ImageTarget], activations: Tensor
    ) -> None:
        rerun = _passes.rerunner(self.model, images, layer, targets)
        kept: list[Tensor] = []
        with torch.no_grad(), _passes.hooks(_passes.named([layer]), lambda _layer, output: kept.append(output.clone())):
            _passes.score(self.model, images, targets)
        last = type(self.ablation_layer) is AblationLayerVit
        maps = kept[-1].movedim(-1, 1) if last else kept[-1]
        for image in range(len(images)):
            for channels in _passes.chunks(self._channels(activations[image]).to(maps.device), self.batch_size):
                off = switched_off(maps[image].expand(len(channels), *maps.shape[1:]), channels)
                rows = torch.full((len(channels),), image)
                scores[image, channels] = rerun(off.movedim(1, -1) if last else off, rows)

    def _by_layer(
        self, scores: Tensor, images: Tensor, layer: nn.Module, targets: Sequence[ImageTarget], activations: Tensor
    ) -> None:
        """With a stand-in of the user's own, which sees whatever the layer returns."""
        off, known = self.ablation_layer, _passes.named([layer])
        kept: list[Any] = []
        with _passes.hooks(known, lambda _layer, output: kept.append(output)):
            _passes.score(self.model, images, targets)
        for image in range(len(images)):
            channels = self._channels(activations[image])
            for some in _passes.chunks(channels, self.batch_size):
                off.indices = some.numpy()
                off.set_next_batch(input_batch_index=image, activations=kept[-1], num_channels_to_ablate=len(some))
                batch = images[image].expand(len(some), *images.shape[1:])
                with _passes.hooks(known, lambda _layer, output: off(output)):
                    scores[image, some] = _passes.score(self.model, batch, [targets[image]] * len(some))

    def _closed_form(self, targets: Sequence[ImageTarget], activations: Tensor, original: Tensor) -> Tensor | None:
        """W[k,c] · mean(A_c) / y where the logits are W · mean(A) + b, or None."""
        classes = class_indices(targets)
        usual = type(self.ablation_layer) is AblationLayer and self.ratio_channels_to_ablate == 1.0
        if classes is None or not usual or not isinstance(self.outputs, Tensor):
            return None
        if len(self.outputs) != len(activations) or bool((activations.flatten(1).amin(dim=1) != 0).any()):
            return None  # channels that may be negative are not set to 0
        head = pooled_linear_head(unwrapped(self.model), activations, self.outputs, autocast=self._mixed)
        if head is None:
            return None
        weight = head.weight.detach().to(activations)[classes]
        return weight * activations.flatten(2).mean(dim=2) / original[:, None]
