"""Pointing games: how much of a map's evidence lies in a given region, or in each cell of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.cam.maps import resize
from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import check_finite, check_map_shape, dtype_name

_ROUNDING = 1e-7  # of a map's magnitude: less positive evidence than this is a rounding error


def pointing_game(maps: Tensor, inside: Tensor) -> Tensor:
    """Whether a map's largest value lies in the region.

    Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016 (arXiv:1608.00507), but without their
    tolerance of 15 pixels around the region.

    Args:
        maps: (B, h, w) signed, of any size: resized bilinearly to (H, W).
        inside: (B, H, W) bool, the region.

    Returns:
        (B,) bool. If several positions share the largest value, all must lie inside; so a constant map misses.

    Raises:
        WhycamError: the shapes do not match, the region is not bool, or a map is not finite.
    """
    _check(maps, inside)
    full = resize(in_double(maps), inside.shape[1:])
    below = full < full.amax(dim=(1, 2), keepdim=True)
    return (below | inside.to(full.device)).flatten(1).all(dim=1).to(maps.device)


def energy_pointing(maps: Tensor, inside: Tensor) -> Tensor:
    """The energy-based pointing game: the share of a map's positive evidence that lies in the region.

    Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv:1910.01279). As in a heatmap, negative values become 0 before
    the map is resized.

    Args:
        maps: (B, h, w) signed, of any size: resized bilinearly to (H, W).
        inside: (B, H, W) bool, the region.

    Returns:
        (B,) float64 in [0, 1]; 0 where the map has no positive evidence (at most 1e-7 of Σ|map|).

    Raises:
        WhycamError: the shapes do not match, the region is not bool, or a map is not finite.
    """
    _check(maps, inside)
    evidence = _evidence(maps, inside.shape[1:])
    parts = [evidence.masked_fill(outside.to(evidence.device), 0).sum(dim=(1, 2)) for outside in (~inside, inside)]
    return _shares(torch.stack(parts, dim=1))[:, 0]


def cell_shares(maps: Tensor, grid: int, *, size: Sequence[int] | None = None) -> Tensor:
    """The share of a map's positive evidence that lies in each cell of a grid.

    As in a heatmap, negative values become 0 before the map is resized.

    Args:
        maps: (n, h, w) signed.
        grid: the number of cells along each side.
        size: (H, W), multiples of ``grid``, to which maps are resized bilinearly; by default (h, w) rounded up to
            multiples of ``grid``.

    Returns:
        (n, grid²) float64, row by row. The shares of a map sum to 1; all are 0 where the map has no positive evidence
        (at most 1e-7 of Σ|map|).

    Raises:
        WhycamError: the maps are not (n, h, w) or not finite, or ``grid`` is below 1 or does not divide the size.
    """
    _check(maps)
    if grid < 1:
        raise WhycamError(f"grid is the number of cells along each side and must be at least 1, got {grid}")
    height, width = size or (-(-side // grid) * grid for side in maps.shape[1:])
    if height % grid or width % grid:
        raise WhycamError(f"{height}×{width} has no {grid}×{grid} equal cells: give a size in multiples of {grid}")
    evidence = _evidence(maps, (height, width))
    cells = evidence.view(len(maps), grid, height // grid, grid, width // grid).sum(dim=(2, 4))
    return _shares(cells.flatten(1))


def _evidence(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h, w) → (B, H, W) float64 positive evidence; 0 everywhere if it is only a rounding error."""
    raw = in_double(maps)
    positive = raw.relu()
    none = positive.sum(dim=(1, 2)) <= _ROUNDING * raw.abs().sum(dim=(1, 2))
    return resize(positive, size).masked_fill(none[:, None, None], 0)


def _shares(parts: Tensor) -> Tensor:
    """(B, n) evidence → (B, n) shares of its sum: exactly 1 if one part holds everything, 0 where the sum is 0."""
    total = parts.sum(dim=1, keepdim=True)
    return parts / torch.where(total > 0, total, 1)


def _check(maps: Tensor, inside: Tensor | None = None) -> None:
    check_map_shape(maps)
    if inside is not None and (inside.ndim != 3 or inside.dtype != torch.bool or len(inside) != len(maps)):
        raise WhycamError(
            f"inside must be (B, H, W) bool, one region for each of {len(maps)} maps, got {tuple(inside.shape)} "
            f"{dtype_name(inside)}"
        )
    check_finite(maps, "it points nowhere")
