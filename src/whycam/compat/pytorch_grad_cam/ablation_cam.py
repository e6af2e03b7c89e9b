"""Ablation-CAM (Desai & Ramaswamy, WACV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.cam.methods._masks import score_pairs
from whycam.cam.network.head import pooled_linear_head
from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam._methods import FormulaCAM, LayerView
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import class_indices
from whycam.compat.pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit, switched_off
from whycam.nn_utils import unwrapped


def _ablationcam(v: LayerView) -> Tensor:
    original = _passes.score(v.cam.model, v.images, v.targets)
    if (weights := _closed_form(v, original)) is not None:
        return weights
    ours = type(v.cam.ablation_layer) in (AblationLayer, AblationLayerVit)
    scores = (_by_tail if ours else _by_layer)(v, original)
    return (original[:, None] - scores) / original[:, None]


def _closed_form(v: LayerView, original: Tensor) -> Tensor | None:
    """W[k,c] · mean(A_c) / y where the logits are W · mean(A) + b, or None."""
    cam, logits, classes = v.cam, v.cam.outputs, class_indices(v.targets)
    usual = type(cam.ablation_layer) is AblationLayer and cam.ratio_channels_to_ablate == 1.0
    if classes is None or not usual or not isinstance(logits, Tensor):
        return None
    if len(logits) != len(v.a) or bool((v.a.flatten(1).amin(dim=1) != 0).any()):
        return None  # channels that may be negative are not set to 0
    head = pooled_linear_head(unwrapped(cam.model), v.a, logits, autocast=cam._autocast)
    if head is None:
        return None
    weight = head.weight.detach().to(v.a)[classes]
    return weight * v.a.flatten(2).mean(dim=2) / original[:, None]


def _channels(v: LayerView, image: int) -> Tensor:
    """The channels of one image that get a pass of their own."""
    cam = v.cam
    chosen = cam.ablation_layer.activations_to_be_ablated(v.a[image].cpu().numpy(), cam.ratio_channels_to_ablate)
    return torch.as_tensor(np.asarray(chosen), dtype=torch.long)


def _by_tail(v: LayerView, original: Tensor) -> Tensor:
    """(B, C) scores without each channel, by running what follows the layer."""
    output, rerun = _passes.rerunner(v.cam.model, v.images, v.layer, v.targets)
    last = type(v.cam.ablation_layer) is AblationLayerVit
    maps = output.movedim(-1, 1) if last else output
    chosen = torch.zeros(v.a.shape[:2], dtype=torch.bool, device=maps.device)
    for image, row in enumerate(chosen):
        row[_channels(v, image)] = True

    def score(rows: Tensor, channels: Tensor) -> Tensor:
        off = switched_off(maps[rows], channels)
        return rerun(off.movedim(1, -1) if last else off, rows)

    found = score_pairs(chosen, v.cam.batch_size, score, original)
    return torch.where(chosen, found, original[:, None])


def _by_layer(v: LayerView, original: Tensor) -> Tensor:
    """The same with a user's own ablation layer, which gets whatever the layer returns."""
    model, off, known = v.cam.model, v.cam.ablation_layer, _passes.named([v.layer])
    kept: list[Any] = []
    with _passes.hooks(known, lambda _layer, output: kept.append(output)):
        _passes.score(model, v.images, v.targets)
    scores = original[:, None].repeat(1, v.a.shape[1])
    for image, target in enumerate(v.targets):
        for some in torch.split(_channels(v, image), v.cam.batch_size):
            if not len(some):
                continue
            off.indices = some.numpy()
            off.set_next_batch(input_batch_index=image, activations=kept[-1], num_channels_to_ablate=len(some))
            batch = v.images[image].expand(len(some), *v.images.shape[1:])
            with _passes.hooks(known, lambda _layer, output: off(output)):
                scores[image, some] = _passes.score(model, batch, [target] * len(some))
    return scores


class AblationCAM(FormulaCAM, path="ablation_cam", weights=_ablationcam, gradients=False):
    """Channels weighted by the share of the score that is lost without them, (y − y_c) / y.

    The model is not changed: hooks replace the layer's output. Where only a mean over positions and one linear layer
    follow, the weights have a closed form and nothing runs.

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
        super().__init__(model, target_layers, reshape_transform)
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
