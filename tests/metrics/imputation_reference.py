"""A slow reference of ROAD's noisy linear imputation."""

from __future__ import annotations

import numpy as np


def solved(image, removed):
    """Solve, for one channel (H, W): removed pixel = Σ weight · neighbor / Σ weight, over existing neighbors."""
    removed_at = [tuple(p) for p in np.argwhere(removed)]
    number = {place: i for i, place in enumerate(removed_at)}
    matrix, right = np.eye(len(removed_at)), np.zeros(len(removed_at))
    for (row, column), i in number.items():
        around = {
            (row + down, column + across): 1 / 6 if 0 in (down, across) else 1 / 12
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            if (down, across) != (0, 0) and 0 <= row + down < image.shape[0] and 0 <= column + across < image.shape[1]
        }
        for place, weight in around.items():
            share = weight / sum(around.values())
            if place in number:
                matrix[i, number[place]] -= share
            else:
                right[i] += share * image[place]
    out = image.copy()
    if removed_at:
        out[tuple(np.array(removed_at).T)] = np.linalg.solve(matrix, right)
    return out
