"""Whether a map points where the evidence must lie: at a region, or at a cell of a mosaic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.cam.maps import finite, resize
from whycam.device import in_double
from whycam.errors import WhycamError

_NONE = 1e-7  # of a map's magnitude: less is rounding


def pointing_game(maps: Tensor, inside: Tensor) -> Tensor:
    """Whether a map's largest value lies in the region.

    Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016 (arXiv:1608.00507); without their
    tolerance of 15 pixels around the region.

    Args:
        maps: (B, h, w) signed, of any size: resized bilinearly to (H, W).
        inside: (B, H, W) bool, the region.

    Returns:
        (B,) bool. Where several places share the largest value, all of them have to lie inside: a blank map misses.

    Raises:
        WhycamError: the shapes do not belong together, the region is not bool, or a map is not finite.
    """
    _check(maps, inside)
    full = resize(in_double(maps), inside.shape[1:])
    below = full < full.amax(dim=(1, 2), keepdim=True)
    return (below | inside.to(full.device)).flatten(1).all(dim=1).to(maps.device)


def energy_pointing(maps: Tensor, inside: Tensor) -> Tensor:
    """The share of a map's positive evidence that lies in the region: the energy-based pointing game.

    Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv:1910.01279). As in a heatmap, what is negative is set to 0
    first, and the rest then resized.

    Args:
        maps: (B, h, w) signed, of any size: resized bilinearly to (H, W).
        inside: (B, H, W) bool, the region.

    Returns:
        (B,) float64 in [0, 1]; 0 where there is no positive evidence (at most 1e-7 of Σ|map|).

    Raises:
        WhycamError: the shapes do not belong together, the region is not bool, or a map is not finite.
    """
    _check(maps, inside)
    evidence = _evidence(maps, inside.shape[1:])
    parts = [evidence.masked_fill(cover.to(evidence.device), 0).sum(dim=(1, 2)) for cover in (~inside, inside)]
    return _shares(torch.stack(parts, dim=1))[:, 0]


def cell_shares(maps: Tensor, grid: int, *, size: Sequence[int] | None = None) -> Tensor:
    """The share of a map's positive evidence that lies in each cell of a grid.

    As in a heatmap, what is negative is set to 0 first, and the rest then resized.

    Args:
        maps: (n, h, w) signed.
        grid: cells along each side.
        size: (H, W) to resize to bilinearly, multiples of ``grid``; by default the smallest ones that are not below
            (h, w), so that maps which the cells divide are not resized.

    Returns:
        (n, grid²) float64, row by row: of sum 1, or 0 throughout where there is no positive evidence (at most 1e-7 of
        Σ|map|).

    Raises:
        WhycamError: there are no such maps, no such grid, or the grid does not divide the size.
    """
    _check(maps)
    if grid < 1:
        raise WhycamError(f"grid is the number of cells along each side, at least 1, got {grid}")
    height, width = size or (-(-side // grid) * grid for side in maps.shape[1:])
    if height % grid or width % grid:
        raise WhycamError(f"{height}×{width} has no {grid}×{grid} equal cells: give multiples of {grid}")
    evidence = _evidence(maps, (height, width))
    cells = evidence.view(len(maps), grid, height // grid, grid, width // grid).sum(dim=(2, 4))
    return _shares(cells.flatten(1))


def _evidence(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h, w) → (B, H, W) float64, the positive evidence; 0 throughout where there is none but by rounding."""
    raw = in_double(maps)
    positive = raw.relu()
    none = positive.sum(dim=(1, 2)) <= _NONE * raw.abs().sum(dim=(1, 2))
    return resize(positive, size).masked_fill(none[:, None, None], 0)


def _shares(parts: Tensor) -> Tensor:
    """(B, n) evidence → (B, n) of its sum, so that where all lies in one part, that is exactly 1; 0 where all are."""
    total = parts.sum(dim=1, keepdim=True)
    return parts / torch.where(total > 0, total, 1)


def _check(maps: Tensor, inside: Tensor | None = None) -> None:
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise WhycamError(f"maps must be (B, h, w), got {tuple(maps.shape)}")
    if inside is not None and (inside.ndim != 3 or inside.dtype != torch.bool or len(inside) != len(maps)):
        raise WhycamError(
            f"inside must be (B, H, W) bool, one region for each of {len(maps)} maps, got {tuple(inside.shape)} "
            f"{str(inside.dtype).removeprefix('torch.')}"
        )
    broken = ~finite(maps)
    if bool(broken.any()):
        raise WhycamError(f"map {int(broken.int().argmax())} holds NaN or infinity: it points nowhere")
