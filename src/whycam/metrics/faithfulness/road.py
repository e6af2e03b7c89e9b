"""ROAD, remove and debias: the score without the pixels that a map ranks highest, or lowest.

Rong et al., "A consistent and efficient evaluation strategy for attribution methods", ICML 2022 (arXiv:2202.00449).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.metrics.checks import check_maps
from whycam.metrics.faithfulness.imputation import noisy_linear_imputation
from whycam.metrics.faithfulness.pixel_ranks import ranks, removed_counts, removed_pixels
from whycam.metrics.scoring import Classes, ClassScorer, Preprocessing, ScoreFunction
from whycam.seeds import per_image

PERCENTILES = (20.0, 50.0, 80.0)
"""Shares of the pixels that are removed, in percent."""
NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, for values in [0, 1]: the authors' choice."""
_TOLERANCE = 1e-6  # the error of a pixel is then about 1e-5, a thousandth of the noise


@dataclass(frozen=True, eq=False)
class Road:
    """The score after pixels were removed.

    Attributes:
        percentiles: P shares of removed pixels, in percent.
        morf: (B, P) the score without the most relevant pixels (most relevant first). Lower is better.
        lerf: (B, P) the score without the least relevant pixels (least relevant first). Higher is better.
    """

    percentiles: tuple[float, ...]
    morf: Tensor
    lerf: Tensor

    @property
    def combined(self) -> Tensor:
        """(B,) half the difference of the two means, LeRF − MoRF: in [−½, ½] for probabilities, higher is better.

        A noise map has expectation 0, however the network reacts to removal itself. A map and its negative have
        opposite scores.
        """
        return (self.lerf.mean(dim=1) - self.morf.mean(dim=1)) / 2


def road(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes = None,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    preprocess: Preprocessing | None = None,
    noise: float = NOISE,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Road:
    """Remove and debias: the score without the pixels that a map ranks highest, and without those it ranks lowest.

    A removed pixel becomes the weighted mean of its neighbors (`noisy_linear_imputation`) plus a little noise, so that
    neither the shape nor the color of a hole tells the network anything. An image's tie-breaks and noise are the same
    for all percentiles and for both orders.

    Args:
        model: maps (n, C, H, W) to (n, K) logits, and the score is the target's softmax probability; or to (n,) scores.
            A module runs in evaluation mode and keeps its own mode afterwards.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly, then ranked by their signed value. Pixels of
            equal value come in random order, so that the exact share is removed.
        targets: the class to score: one, or one per image. None if ``model`` returns scores.
        percentiles: shares of the pixels to remove, in percent, each between 0 and 100.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        noise: its standard deviation; imputed pixels are clipped to [0, 1].
        seed: seeds tie-breaks and noise: one number, or one per image, so that an image's score does not depend on the
            rest of the batch.
        batch_size: altered images in one forward pass; changes the result only by rounding.

    Raises:
        WhycamError: shapes do not match, an image lies outside [0, 1], a map is not finite, a percentile removes
            nothing or everything, or the model's output has neither form or is not finite.
    """
    check_maps(maps, images)
    scorer = ClassScorer.create(model, images, targets, preprocess, batch_size)
    height, width = images.shape[2:]
    counts = removed_counts(percentiles, height * width)
    draws = per_image("road", seed, len(images))
    copies = 2 * len(counts)
    full = resize(maps.float(), (height, width)).to(images.device)
    parts = []
    with scorer.inference():
        every_row = torch.arange(len(images), device=images.device)
        for rows in torch.split(every_row, max(1, batch_size // copies)) if len(images) else ():
            own = [draws[row] for row in rows.tolist()]
            ties = torch.stack([torch.rand(height, width, generator=draw) for draw in own])
            grain = torch.stack([torch.randn(images.shape[1:], generator=draw) for draw in own])
            removed = removed_pixels(ranks(full[rows], ties.to(full)), counts)
            altered = _imputed(images[rows], removed, noise * grain.to(images))
            scores = scorer.scores(altered, rows.repeat_interleave(copies))
            parts.append(scores.view(-1, 2, len(counts)))
    scores = torch.cat(parts) if parts else images.new_zeros(0, 2, len(counts))
    return Road(tuple(float(p) for p in percentiles), scores[:, 0], scores[:, 1])


def _imputed(images: Tensor, removed: Tensor, grain: Tensor) -> Tensor:
    """(n, C, H, W) images, (n, 2, P, H, W) removed pixels, (n, C, H, W) noise → (n · 2 · P, C, H, W)."""
    # One share at a time: more removed pixels need more iterations, and all shares would wait for the largest.
    twice = images.repeat_interleave(2, dim=0)
    by_share = [
        noisy_linear_imputation(twice, share.flatten(0, 1), tolerance=_TOLERANCE) for share in removed.unbind(dim=2)
    ]
    filled = torch.stack(by_share, dim=1).flatten(0, 1)
    copies = removed.shape[1] * removed.shape[2]
    noisy = (filled + grain.repeat_interleave(copies, dim=0)).clamp(0, 1)
    return torch.where(removed.flatten(0, 2)[:, None], noisy, filled)
