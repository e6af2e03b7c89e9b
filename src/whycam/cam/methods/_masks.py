"""What the perturbation methods share: (image, part) pairs run in chunks, and the layer's channels as image masks.

A method that scores every channel of every image has B·C reruns before it. They are one flat list of pairs here, cut
into chunks of ``batch_size`` rows whatever image they belong to, and it holds only pairs that say something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from whycam.cam.maps import resize, to_unit

BATCH_SIZE = 128


def nonconstant(maps: Tensor) -> Tensor:
    """Which maps are not the same everywhere: (B, C, …) → (B, C) bool. NaN is not live."""
    flat = maps.flatten(2)
    return flat.amax(dim=2) > flat.amin(dim=2)


def chunks(chosen: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (image, part) of a (B, P) bool tensor, as index tensors of at most ``batch_size``."""
    # Part by part, so that a chunk holds many images: a target that knows the whole batch only (see
    # whycam.cam.targets.classification.score_rows) is then called once for many of them.
    parts, rows = chosen.T.nonzero(as_tuple=True)
    if not len(rows):
        return  # torch.split would make one chunk of nothing, and few networks run on no images
    yield from zip(torch.split(rows, batch_size), torch.split(parts, batch_size), strict=True)


def score_pairs(chosen: Tensor, batch_size: int, score: Callable[[Tensor, Tensor], Tensor], like: Tensor) -> Tensor:
    """(B, P) scores of the pairs in ``chosen``, by ``score(rows, parts)``; 0 where a pair was not run."""
    found = like.new_zeros(chosen.shape)
    for rows, parts in chunks(chosen, batch_size):
        found[rows, parts] = score(rows, parts).to(like.dtype)
    return found


def image_masks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) maps as masks of the image: resized linearly to ``size``, then stretched to [0, 1]."""
    return to_unit(resize(maps, size))


def resized_range(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each map's smallest and largest value once it is resized: (B, P, …) → twice (B, P, 1, …)."""
    flat = resize(maps.flatten(0, 1), size).flatten(1)
    shape = (*maps.shape[:2], *[1] * (maps.ndim - 2))
    return flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)


def softmax_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen of each row, 0 elsewhere and where a row has none chosen: (B, C) → (B, C)."""
    weights = values.masked_fill(~chosen, float("-inf")).softmax(dim=1)
    return torch.where(chosen, weights, 0)


def blurred(images: Tensor, size: int = 51, sigma: float = 50.0) -> Tensor:
    """(B, C, …) with a Gaussian over every axis of positions, mirrored at the borders.

    Each axis is one small matrix product, so a kernel wider than the image is no difficulty.
    """
    offsets = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    result = images
    for axis in range(2, images.ndim):
        length = images.shape[axis]
        places = torch.arange(length, device=images.device)[:, None] + offsets.round().long()
        period = max(2 * (length - 1), 1)
        places = places.remainder(period)
        places = torch.where(places < length, places, period - places)
        smooth = images.new_zeros(length, length).scatter_add_(1, places, kernel.expand(length, -1).contiguous())
        result = (result.movedim(axis, -1) @ smooth.T).movedim(-1, axis)
    return result
