"""ROAD: what removing the pixels that a map ranks high, or low, does to a network's answer.

Rong et al., "A consistent and efficient evaluation strategy for attribution methods", ICML 2022 (arXiv:2202.00449).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.metrics.faithfulness.imputation import noisy_linear_imputation
from whycam.metrics.faithfulness.ranking import ranks, removed_counts, removed_pixels
from whycam.metrics.faithfulness.scoring import Classes, Preprocessing, Question, ScoreFunction, check_maps
from whycam.seeds import per_image

PERCENTILES = (20.0, 50.0, 80.0)
"""Shares of the pixels that are removed, in percent."""
NOISE = 0.01
"""Standard deviation of what is added to pixels that were filled in, for values in [0, 1]: the authors' choice."""
_TOLERANCE = 1e-6  # leaves pixels right to about 1e-5, a thousandth of the noise


@dataclass(frozen=True, eq=False)
class Road:
    """What became of the score as pixels were removed.

    Attributes:
        percentiles: P shares of the pixels that were removed, in percent.
        morf: (B, P) the score without the most relevant pixels. Lower is better.
        lerf: (B, P) the score without the least relevant ones. Higher is better.
    """

    percentiles: tuple[float, ...]
    morf: Tensor
    lerf: Tensor

    @property
    def combined(self) -> Tensor:
        """(B,) half the difference of the two means, LeRF − MoRF: in [−½, ½] for probabilities, higher is better.

        Its expectation over noise is 0, whatever removal itself does to the network: a map and its negative score
        opposite.
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

    Removed pixels become the weighted mean of their neighbors (`noisy_linear_imputation`) plus a little noise, so that
    neither a hole's shape nor its color is news to the network. An image's tie-breaks and noise are the same for all
    percentiles and both orders.

    Args:
        model: (n, C, H, W) → (n, K) logits, of which a target's softmax probability is the score; or (n,) scores. A
            module is run in evaluation mode and left as it was.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly, then ranked by their signed value. Pixels of
            equal rank are put in random order, so that exactly the share asked for is removed.
        targets: the class whose probability is watched: one, or one an image. None where ``model`` gives scores.
        percentiles: shares of the pixels to remove, in percent, each between 0 and 100.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        noise: its standard deviation; filled pixels are cut off at 0 and 1.
        seed: of tie-breaks and noise: a number, or one for each image, so that its score does not depend on what else
            is in the batch.
        batch_size: altered images at a time; does not change the result beyond rounding.

    Raises:
        WhycamError: shapes do not belong together, an image lies outside [0, 1], a map is not finite, a percentile
            removes nothing or everything, or the model's answer fits neither form or is not finite.
    """
    check_maps(maps, images)
    question = Question.about(model, images, targets, preprocess, batch_size)
    height, width = images.shape[2:]
    counts = removed_counts(percentiles, height * width)
    draws = per_image("road", seed, len(images))
    copies = 2 * len(counts)
    at_once = max(1, batch_size // copies)
    full = resize(maps.float(), (height, width)).to(images.device)
    found = []
    with question.asking():
        for start in range(0, len(images), at_once):
            rows = torch.arange(len(images), device=images.device)[start : start + at_once]
            chosen = slice(start, start + at_once)
            ties = torch.stack([torch.rand(height, width, generator=draw) for draw in draws[chosen]])
            added = torch.stack([torch.randn(images.shape[1:], generator=draw) for draw in draws[chosen]])
            removed = removed_pixels(ranks(full[chosen], ties.to(full)), counts)
            # One share at a time: the more is removed, the longer it takes, and all would wait for the last.
            twice = images[chosen].repeat_interleave(2, dim=0)
            apart = [
                noisy_linear_imputation(twice, removed[:, :, place].flatten(0, 1), tolerance=_TOLERANCE)
                for place in range(len(counts))
            ]
            filled = torch.stack(apart, dim=1).flatten(0, 1)
            grain = noise * added.to(images).repeat_interleave(copies, dim=0)
            mask = removed.flatten(0, 2)
            filled = torch.where(mask[:, None], (filled + grain).clamp(0, 1), filled)
            answers = question.scores(filled, rows.repeat_interleave(copies))
            found.append(answers.view(-1, 2, len(counts)))
    scores = torch.cat(found) if found else images.new_zeros(0, 2, len(counts))
    return Road(tuple(float(p) for p in percentiles), scores[:, 0], scores[:, 1])
