"""From signed raw maps to heatmaps for display, and flags for maps whose picture would mislead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.errors import WhycamError

Key = tuple[str, str, str]
"""(method, layer, target)."""
Flag = Literal["non-finite", "all-zero", "negative-only", "constant", "coarse"]
Interpolation = Literal["nearest", "bilinear"]
Aggregation = Literal["mean", "max", "product"]

# A map with fewer cells than this says little more than "somewhere in this quarter of the image".
COARSE_CELLS = 9


def finite(maps: Tensor) -> Tensor:
    """(B, …) → (B,) bool: which maps hold neither NaN nor infinity."""
    return maps.flatten(1).isfinite().all(dim=1)


def only_finite(maps: Tensor) -> Tensor:
    """(B, …) with each map that is not finite replaced by zeros: no evidence anywhere."""
    return torch.where(finite(maps).view(-1, *[1] * (maps.ndim - 1)), maps, 0)


def flags_of(raw: Tensor) -> list[tuple[Flag, ...]]:
    """Flags of each map whose picture alone would mislead a viewer.

    * ``non-finite``: holds NaN or infinity; the map then has no other flag but ``coarse``.
    * ``all-zero``: no evidence for or against the target.
    * ``negative-only``: only evidence against the target; the usual ReLU leaves nothing.
    * ``constant``: the same value everywhere, so it points to no region.
    * ``coarse``: fewer than nine cells, which hardly locate the evidence.

    Args:
        raw: (B, h, w) signed.

    Returns:
        One tuple of flags per map.
    """
    flat = raw.flatten(1)
    lows, highs = flat.amin(dim=1).tolist(), flat.amax(dim=1).tolist()
    coarse = flat.shape[1] < COARSE_CELLS
    result: list[tuple[Flag, ...]] = []
    for is_finite, low, high in zip(finite(raw).tolist(), lows, highs, strict=True):
        found: list[Flag] = []
        if not is_finite:
            found.append("non-finite")
        elif low == high == 0:
            found.append("all-zero")
        else:
            if high <= 0:
                found.append("negative-only")
            if low == high:
                found.append("constant")
        if coarse:
            found.append("coarse")
        result.append(tuple(found))
    return result


def resize(maps: Tensor, size: Sequence[int], interpolation: Interpolation = "bilinear") -> Tensor:
    """(B, h, w) → (B, H, W), also for one and three axes of positions.

    Linear interpolation with half-pixel centers (``align_corners=False``), as in OpenCV, or the nearest cell.
    """
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    if interpolation == "nearest":
        return F.interpolate(maps[:, None], size=tuple(size), mode="nearest-exact")[:, 0]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps[:, None], size=tuple(size), mode=mode, align_corners=False)[:, 0]


def to_unit(raw: Tensor) -> Tensor:
    """Min-max scale each map to [0, 1]; a constant map becomes 0, NaN stays NaN."""
    flat = raw.flatten(1)
    shape = (-1, *[1] * (raw.ndim - 1))
    low, high = flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)
    return torch.where(high == low, 0, (raw - low) / torch.where(high == low, 1, high - low))


def heatmaps(
    raw: Tensor,
    size: Sequence[int],
    *,
    scale: Tensor | float | None = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Positive evidence on [0, 1], at the image's size.

    The steps are a ReLU, division by ``scale`` and resizing. Zero stays zero: unlike min-max scaling, this adds no
    evidence that the map does not have. With one ``scale`` for several maps their brightness can be compared.

    Args:
        raw: (B, h, w) signed.
        size: (H, W).
        scale: the value of ``raw`` that becomes 1: one number or (B,); by default each map's own maximum.
        interpolation: "bilinear" (smooth, shows detail that the map does not have) or "nearest" (the native grid).

    Returns:
        (B, H, W) float; an all-zero or negative-only map is zero, NaN counts as zero (see `flags_of`).

    Raises:
        WhycamError: ``scale`` is not one number or one per map, or is negative; or there is no such interpolation.
    """
    if interpolation not in get_args(Interpolation):
        raise WhycamError(f"interpolation is {' or '.join(map(repr, get_args(Interpolation)))}, not {interpolation!r}")
    positive = raw.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).relu()
    top = positive.flatten(1).amax(dim=1) if scale is None else torch.as_tensor(scale)
    if top.shape not in ((), (1,), (len(raw),)):
        raise WhycamError(f"scale is {tuple(top.shape)} for {len(raw)} maps: give one number, or one per map")
    if scale is not None and not bool((top >= 0).all()):
        raise WhycamError("scale is the value that becomes 1 in a heatmap; it must not be negative or NaN")
    top = top.to(raw)
    top = top.expand(len(raw)).view(-1, *[1] * (raw.ndim - 1))
    unit = torch.where(top > 0, positive / top, 0.0).clamp(max=1)
    # Rounding can make an interpolated value larger than 1.
    return resize(unit, size, interpolation).clamp(max=1)


def aggregate(maps: Sequence[Tensor], how: Aggregation = "mean", size: Sequence[int] | None = None) -> Tensor:
    """One heatmap of several layers' maps, (B, h, w) in [0, 1].

    The layers' scales differ, so each map's positive evidence is first divided by its maximum (see `heatmaps`), then
    resized. A product is zero if one layer has no positive evidence.

    Args:
        maps: (B, h, w) signed, of any sizes.
        how: "mean", "max" or "product" over the layers.
        size: of the result; by default that of the finest map.

    Raises:
        WhycamError: there is no map, or ``how`` is unknown.
    """
    if not maps:
        raise WhycamError("there is no map to aggregate")
    if size is None:
        size = max((tuple(raw.shape[1:]) for raw in maps), key=math.prod)
    stacked = torch.stack([heatmaps(raw, size) for raw in maps])
    if how == "mean":
        return stacked.mean(dim=0)
    if how == "max":
        return stacked.amax(dim=0)
    if how == "product":
        return stacked.prod(dim=0)
    raise WhycamError(f"layers are aggregated by mean, max or product, not {how!r}")
