"""Imputation of removed pixels from their neighbors: ROAD's noisy linear imputation, without the noise.

Rong et al., "A consistent and efficient evaluation strategy for attribution methods", ICML 2022 (arXiv:2202.00449).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import dtype_name

Weighting = Sequence[tuple[tuple[int, int], float]]

NEIGHBORS: Weighting = [
    ((down, across), 1 / 6 if down == 0 or across == 0 else 1 / 12)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
]
"""The weight of each neighbor, as ((row offset, column offset), weight); opposite neighbors have equal weights."""

TOLERANCE = 1e-8


def noisy_linear_imputation(
    images: Tensor, removed: Tensor, *, weighting: Weighting = NEIGHBORS, tolerance: float = TOLERANCE
) -> Tensor:
    """Replace every removed pixel by the weighted mean of its neighbors, all pixels of an image at once.

    At the borders the weights of the existing neighbors are scaled to a sum of 1. If each row of this linear system is
    multiplied by its sum of weights, the matrix is symmetric, and positive definite as long as one pixel is known. It
    is a small stencil, so conjugate gradients on the pixel grid solve the whole batch in float64; no sparse matrix or
    factorization is needed.

    Args:
        images: (B, C, H, W) floats; values where ``removed`` is true are ignored.
        removed: (B, H, W) bool.
        weighting: the weight of each neighbor, as in `NEIGHBORS`.
        tolerance: stop when, in each image and channel, the norm of the residual divided by the norm of the right-hand
            side is at most this; both norms are weighted by the inverse diagonal.

    Returns:
        (B, C, H, W), with known pixels unchanged.

    Raises:
        WhycamError: the shapes do not match, an image has no known pixel, a known pixel is not finite, or the solver
            does not converge.
    """
    if images.ndim != 4 or removed.dtype != torch.bool or removed.shape != images.shape[:1] + images.shape[2:]:
        raise WhycamError(
            "images to impute must be (B, C, H, W) and removed (B, H, W) bool, got "
            f"{tuple(images.shape)} and {tuple(removed.shape)} {dtype_name(removed)}"
        )
    nothing_left = removed.flatten(1).all(dim=1)
    if bool(nothing_left.any()):
        raise WhycamError(
            f"image {int(nothing_left.int().argmax())} has no pixel left from which to impute the others: remove fewer"
        )
    precise = in_double(images)
    missing = removed.to(precise.device)[:, None]
    known = precise.masked_fill(missing, 0)
    if not bool(known.isfinite().all()):
        raise WhycamError("an image to impute holds NaN or infinity")
    return torch.where(removed[:, None], _solve(known, missing.to(known), weighting, tolerance).to(images), images)


def _solve(known: Tensor, unknown: Tensor, weighting: Weighting, tolerance: float) -> Tensor:
    """Conjugate gradients with a diagonal preconditioner; ``unknown`` (B, 1, H, W) is 1 at removed pixels, else 0."""
    # The diagonal is each pixel's sum of weights; it is smaller at the border.
    diagonal = _weighted_sum(torch.ones_like(unknown), weighting)
    inverse = unknown / diagonal
    residual = _weighted_sum(known, weighting) * unknown
    solution = torch.zeros_like(residual)
    direction = residual * inverse
    power = _dot(residual, direction)
    goal = (tolerance**2 * power).clamp(min=torch.finfo(power.dtype).tiny)
    # In exact arithmetic, one iteration per pixel is enough; in practice a few image widths always were.
    limit = 10 * sum(known.shape[2:]) + 100
    for _ in range(limit):
        running = power > goal
        if not bool(running.any()):
            return solution
        applied = (diagonal * direction).sub_(_weighted_sum(direction, weighting)).mul_(unknown)
        step = torch.where(running, power / torch.where(running, _dot(direction, applied), 1), 0)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, applied, value=-1)
        preconditioned = residual * inverse
        new = _dot(residual, preconditioned)
        direction = direction.mul_(torch.where(running, new / torch.where(running, power, 1), 0)).add_(preconditioned)
        power = torch.where(running, new, power)
    if bool((power > goal).any()):
        left = float((power / goal).max().sqrt()) * tolerance
        raise WhycamError(
            f"imputation did not converge in {limit} iterations (residual {left:.1e}, tolerance {tolerance:.1e}): "
            "give a larger tolerance"
        )
    return solution


def _weighted_sum(values: Tensor, weighting: Weighting) -> Tensor:
    """The weighted sum of each pixel's neighbors; neighbors outside the image count as 0."""
    total = torch.zeros_like(values)
    for (down, across), weight in weighting:
        (top, bottom), (left, right) = _overlap(values.shape[-2], down), _overlap(values.shape[-1], across)
        there = values[..., top + down : bottom + down, left + across : right + across]
        total[..., top:bottom, left:right].add_(there, alpha=weight)
    return total


def _overlap(length: int, step: int) -> tuple[int, int]:
    """The range of positions on an axis for which the position ``step`` further exists too."""
    return max(-step, 0), length - max(step, 0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(2, 3), keepdim=True)
