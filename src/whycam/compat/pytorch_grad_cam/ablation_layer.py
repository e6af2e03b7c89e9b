"""Replacements of a layer's output with one channel per row switched off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection


class AblationLayer(nn.Module):
    """Row i of the batch is one image's activations without channel ``indices[i]``; (C, h, w) per image."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: Array = np.zeros(0, np.int32)
        self.activations: Any = None

    def objectiveness_mask_from_svd(self, activations: Array, threshold: float = 0.01) -> Array:
        """(C, h, w) → (h, w): where the first principal component is above a threshold."""
        projection = np.abs(get_2d_projection(activations[None])[0])
        projection = projection - projection.min()
        return np.asarray(projection / projection.max() > threshold)

    def activations_to_be_ablated(self, activations: Array, ratio_channels_to_ablate: float = 1.0) -> Array:
        """The channels worth a forward pass.

        Args:
            activations: (C, h, w).
            ratio_channels_to_ablate: 1 for all; less for so many of the channels that lie most inside the mask, and
                as many of those that lie least inside.

        Returns:
            Their indices, each at most once; kept in ``indices`` too.
        """
        if ratio_channels_to_ablate == 1.0:
            self.indices = np.arange(len(activations), dtype=np.int32)
            return self.indices
        mask = self.objectiveness_mask_from_svd(activations)
        size = np.abs(activations)
        size = size - size.min(axis=(1, 2), keepdims=True)
        with np.errstate(invalid="ignore"):
            size = size / size.max(axis=(1, 2), keepdims=True)
            inside = (mask * size).sum(axis=(1, 2)) / size.sum(axis=(1, 2))
        order = np.argsort(np.float32(inside))
        count = int(len(order) * ratio_channels_to_ablate)
        both = [*order[::-1][:count].tolist(), *order[:count].tolist()]
        self.indices = np.array(list(dict.fromkeys(both)), dtype=np.int32)
        return self.indices

    def set_next_batch(self, input_batch_index: int, activations: Any, num_channels_to_ablate: int) -> None:
        """Repeat one image's activations ``num_channels_to_ablate`` times."""
        image = activations[input_batch_index].clone()
        self.activations = image[None].repeat(num_channels_to_ablate, *[1] * image.ndim)

    def __call__(self, x: Any) -> Any:
        """The output that replaces ``x``."""
        return switched_off(self.activations, self._chosen(len(self.activations)))

    def _chosen(self, count: int) -> Tensor:
        return torch.as_tensor(np.asarray(self.indices[:count]), dtype=torch.long)


class AblationLayerVit(AblationLayer):
    """The same for tokens (N, C) or channels-last maps (h, w, C) per image."""

    def __call__(self, x: Any) -> Any:
        """The output that replaces ``x``."""
        output = self.activations.movedim(-1, 1)
        return switched_off(output, self._chosen(len(output))).movedim(1, -1)


class AblationLayerFasterRCNN(AblationLayer):
    """The same for a feature pyramid's mapping of five levels with 256 channels each, numbered through."""

    def set_next_batch(self, input_batch_index: int, activations: Any, num_channels_to_ablate: int) -> None:
        """Repeat one image's activations ``num_channels_to_ablate`` times."""
        levels: Mapping[str, Tensor] = activations
        self.activations = OrderedDict(
            (name, level[input_batch_index].clone()[None].repeat(num_channels_to_ablate, 1, 1, 1))
            for name, level in levels.items()
        )

    def __call__(self, x: Any) -> Any:
        """The output that replaces ``x``."""
        levels = list(self.activations.values())
        for row, channel in enumerate(self._chosen(len(levels[0])).tolist()):
            levels[channel // 256][row, channel % 256] = -1000
        return self.activations


def switched_off(maps: Tensor, channels: Tensor, low: Tensor | None = None, below: float = 1e7) -> Tensor:
    """(n, C, …) with channel ``channels[i]`` of row i at 0, or far below everything where values may be negative.

    ``low`` is the smallest value, of each row by itself by default; ``below`` is how far.
    """
    rows = torch.arange(len(maps), device=maps.device)
    low = maps.flatten(1).amin(dim=1) if low is None else low.expand(len(maps))
    value = torch.where(low == 0, 0.0, low - below).to(maps.dtype)
    maps = maps.clone()
    maps[rows, channels.to(maps.device)] = value.view(-1, *[1] * (maps.ndim - 2)).expand(maps[:, 0].shape)
    return maps
