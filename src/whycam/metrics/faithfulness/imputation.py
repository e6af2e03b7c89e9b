"""Removed pixels filled in from their surroundings: ROAD's noisy linear imputation, without its noise.

Rong et al., "A consistent and efficient evaluation strategy for attribution methods", ICML 2022 (arXiv:2202.00449).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.errors import WhycamError

Weighting = Sequence[tuple[tuple[int, int], float]]

NEIGHBORS: Weighting = [
    ((down, across), 1 / 6 if down == 0 or across == 0 else 1 / 12)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
]
"""How much each neighbor counts: ((rows, columns) away, weight); the same in opposite directions."""

TOLERANCE = 1e-8


def noisy_linear_imputation(
    images: Tensor, removed: Tensor, *, weighting: Weighting = NEIGHBORS, tolerance: float = TOLERANCE
) -> Tensor:
    """Make every removed pixel the weighted mean of its neighbors, all of an image's at once.

    At the borders the weights of the neighbors that exist are scaled to a sum of 1. Each row of that linear system
    times its sum of weights, the system is symmetric, and as long as one pixel is known, positive definite; its matrix
    is a small stencil. So conjugate gradients on the grid solve it for the whole batch, in float64, with neither a
    sparse matrix nor a factorization.

    Args:
        images: (B, C, H, W) floats; what they hold where ``removed`` is true is not looked at.
        removed: (B, H, W) bool.
        weighting: ((rows, columns) away, weight) of each neighbor.
        tolerance: where to stop: the residual's length over the right-hand side's, both weighted by the inverse
            diagonal, in each image and channel.

    Returns:
        (B, C, H, W): known pixels as they were.

    Raises:
        WhycamError: the shapes do not belong together, an image has no known pixel, or a known pixel is not finite.
    """
    if images.ndim != 4 or removed.dtype != torch.bool or removed.shape != images.shape[:1] + images.shape[2:]:
        raise WhycamError(
            "images to be filled in must be (B, C, H, W) and what is removed (B, H, W) bool, got "
            f"{tuple(images.shape)} and {tuple(removed.shape)} {str(removed.dtype).removeprefix('torch.')}"
        )
    nothing_left = removed.flatten(1).all(dim=1)
    if bool(nothing_left.any()):
        raise WhycamError(
            f"image {int(nothing_left.int().argmax())} has no pixel left to fill the others in from: remove fewer"
        )
    precise = in_double(images)
    missing = removed.to(precise.device)[:, None]
    known = precise.masked_fill(missing, 0)
    if not bool(known.isfinite().all()):
        raise WhycamError("an image to be filled in holds NaN or infinity")
    return torch.where(removed[:, None], _solve(known, missing.to(known), weighting, tolerance).to(images), images)


def _solve(known: Tensor, unknown: Tensor, weighting: Weighting, tolerance: float) -> Tensor:
    """Conjugate gradients, preconditioned by the diagonal; ``unknown`` (B, 1, H, W) is 1 where ``known`` is missing."""
    # A pixel at the edge has fewer neighbors, so these count for more.
    diagonal = _mixed(torch.ones_like(unknown), weighting)
    inverse = unknown / diagonal
    residual = _mixed(known, weighting) * unknown
    solution = torch.zeros_like(residual)
    direction = residual * inverse
    power = _dot(residual, direction)
    goal = (tolerance**2 * power).clamp(min=torch.finfo(power.dtype).tiny)
    # Exact arithmetic would need one iteration a pixel at most; a few widths of the image have always been enough.
    limit = 10 * sum(known.shape[2:]) + 100
    for _ in range(limit):
        going = power > goal
        if not bool(going.any()):
            return solution
        applied = (diagonal * direction).sub_(_mixed(direction, weighting)).mul_(unknown)
        step = torch.where(going, power / torch.where(going, _dot(direction, applied), 1), 0)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, applied, value=-1)
        preconditioned = residual * inverse
        new = _dot(residual, preconditioned)
        direction = direction.mul_(torch.where(going, new / torch.where(going, power, 1), 0)).add_(preconditioned)
        power = torch.where(going, new, power)
    if bool((power > goal).any()):
        left = float((power / goal).max().sqrt()) * tolerance
        raise WhycamError(
            f"filling removed pixels in did not converge in {limit} iterations (residual {left:.1e}, asked for "
            f"{tolerance:.1e}): allow a larger tolerance"
        )
    return solution


def _mixed(values: Tensor, weighting: Weighting) -> Tensor:
    """Each pixel's neighbors, weighted; nothing lies outside the image."""
    total = torch.zeros_like(values)
    for (down, across), weight in weighting:
        (top, bottom), (left, right) = _both_inside(values.shape[-2], down), _both_inside(values.shape[-1], across)
        there = values[..., top + down : bottom + down, left + across : right + across]
        total[..., top:bottom, left:right].add_(there, alpha=weight)
    return total


def _both_inside(length: int, step: int) -> tuple[int, int]:
    """Where along an axis a place and the one ``step`` further both exist."""
    return max(-step, 0), length - max(step, 0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(2, 3), keepdim=True)
