"""Helpers of the perturbation methods: run (image, part) pairs in chunks, and turn a layer's channels into image masks.

A method that scores every channel of every image needs B·C reruns. They are one flat list of pairs, which is cut into
chunks of ``batch_size`` pairs of any images. Pairs whose result is known beforehand are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from whycam.cam.maps import resize, to_unit

BATCH_SIZE = 128


def nonconstant(maps: Tensor) -> Tensor:
    """Which maps are not constant: (B, C, …) → (B, C) bool. A map with NaN counts as constant."""
    flat = maps.flatten(2)
    return flat.amax(dim=2) > flat.amin(dim=2)


def chunks(chosen: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The (image, part) pairs of a (B, P) bool tensor, as index tensors of at most ``batch_size`` elements."""
    # Sorted by part, so that a chunk holds many images: a target without `at` (see
    # whycam.cam.targets.resolve.score_rows) is then called once for many of them.
    parts, rows = chosen.T.nonzero(as_tuple=True)
    if not len(rows):
        return  # torch.split would return one empty chunk, and few networks accept an empty batch
    yield from zip(torch.split(rows, batch_size), torch.split(parts, batch_size), strict=True)


def score_pairs(chosen: Tensor, batch_size: int, score: Callable[[Tensor, Tensor], Tensor], like: Tensor) -> Tensor:
    """(B, P) scores of the pairs in ``chosen``, by ``score(rows, parts)``; 0 for pairs that are not run."""
    scores = like.new_zeros(chosen.shape)
    for rows, parts in chunks(chosen, batch_size):
        scores[rows, parts] = score(rows, parts).to(like.dtype)
    return scores


def image_masks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) maps as masks of the image: resized linearly to ``size``, then min-max scaled to [0, 1]."""
    return to_unit(resize(maps, size))


def resized_range(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of each resized map: (B, P, …) → two (B, P, 1, …)."""
    flat = resize(maps.flatten(0, 1), size).flatten(1)
    shape = (*maps.shape[:2], *[1] * (maps.ndim - 2))
    return flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)


def softmax_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen channels of each image, 0 for the others: (B, C) → (B, C)."""
    weights = values.masked_fill(~chosen, float("-inf")).softmax(dim=1)
    return torch.where(chosen, weights, 0)


def blurred(images: Tensor, size: int = 51, sigma: float = 50.0) -> Tensor:
    """Blur (B, C, …) with a Gaussian along every axis of positions, mirrored at the borders.

    Each axis is one small matrix product, so the kernel may be wider than the image.
    """
    offsets = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    result = images
    for axis in range(2, images.ndim):
        length = images.shape[axis]
        indices = torch.arange(length, device=images.device)[:, None] + offsets.round().long()
        period = max(2 * (length - 1), 1)
        indices = indices.remainder(period)
        indices = torch.where(indices < length, indices, period - indices)
        matrix = images.new_zeros(length, length).scatter_add_(1, indices, kernel.expand(length, -1).contiguous())
        result = (result.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return result
