"""Deletion and insertion: the score while pixels are removed, or restored, in the order of their map values.

Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018 (arXiv:1806.07421).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.errors import WhycamError
from whycam.metrics.checks import check_maps
from whycam.metrics.faithfulness.baselines import Fill, background
from whycam.metrics.faithfulness.pixel_ranks import ranks
from whycam.metrics.scoring import Classes, ClassScorer, Preprocessing, ScoreFunction
from whycam.seeds import per_image

STEPS = 32
"""The number of equal parts into which the pixels are divided."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The score as more and more pixels are altered.

    Attributes:
        shares: P + 1 shares of altered pixels, from 0 to 1: removed in deletion, restored in insertion.
        scores: (B, P + 1) the score at each share.
    """

    shares: tuple[float, ...]
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """(B,) the area under the curve by the trapezoid rule: in [0, 1] for probabilities.

        Lower is better in deletion, higher in insertion.
        """
        return torch.trapezoid(self.scores, self.scores.new_tensor(self.shares), dim=1)


def deletion(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes = None,
    *,
    fill: Fill = "black",
    steps: int = STEPS,
    preprocess: Preprocessing | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Curve:
    """Start with the image and replace its pixels by the fill, those with the highest map values first.

    The fill influences which method comes out best: holes have a color and edges, and the network reacts to both.
    Report several fills ("black", "mean", "blur") and `insertion` too; `road` imputes removed pixels instead.

    Args:
        model: maps (n, C, H, W) to (n, K) logits, and the score is the target's softmax probability; or to (n,) scores.
            A module runs in evaluation mode and keeps its own mode afterwards.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly, then ranked by their signed value. Pixels of
            equal value come in random order, so that each step alters its exact share.
        targets: the class to score: one, or one per image. None if ``model`` returns scores.
        fill: what replaces pixels, see `background`.
        steps: P, the number of parts into which the pixels are divided, equal up to one pixel.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        seed: seeds the order of ties: one number, or one per image, so that an image's curve does not depend on the
            rest of the batch. `deletion` and `insertion` order ties alike.
        batch_size: altered images in one forward pass; changes the result only by rounding.

    Raises:
        WhycamError: shapes do not match, an image or the fill lies outside [0, 1], a map is not finite, there are more
            steps than pixels or none, or the model's output has neither form or is not finite.
    """
    return _curve(model, images, maps, targets, fill, steps, preprocess, seed, batch_size, inserting=False)


def insertion(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes = None,
    *,
    fill: Fill = "blur",
    steps: int = STEPS,
    preprocess: Preprocessing | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Curve:
    """Start with the fill and restore the image's pixels, those with the highest map values first.

    With the same fill and no ties, this is the deletion curve of the negated map, read backwards. Arguments, errors and
    the influence of the fill are those of `deletion`.
    """
    return _curve(model, images, maps, targets, fill, steps, preprocess, seed, batch_size, inserting=True)


def _curve(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes,
    fill: Fill,
    steps: int,
    preprocess: Preprocessing | None,
    seed: int | Sequence[int],
    batch_size: int,
    *,
    inserting: bool,
) -> Curve:
    maps = maps.float()
    check_maps(maps, images)
    scorer = ClassScorer.create(model, images, targets, preprocess, batch_size)
    size = images.shape[2:]
    pixels = size.numel()
    if not 1 <= steps <= pixels:
        raise WhycamError(f"steps must lie between 1 and the {pixels} pixels of an image, got {steps}")
    counts = [round(step * pixels / steps) for step in range(steps + 1)]
    with scorer.inference():
        ties = torch.empty(len(images), *size)
        for own, draw in zip(ties, per_image("curves", seed, len(images)), strict=True):
            own.uniform_(generator=draw)
        full = resize(maps, size).to(images.device)
        ranked = ranks(full, ties.to(full))
        hidden = background(images, fill)
        first, last = (hidden, images) if inserting else (images, hidden)
        lowest = pixels - torch.tensor(counts, device=images.device)  # pixels of this rank and above are altered
        scores = []
        # Image by image, and for each image step by step.
        for altered in torch.split(torch.arange(len(images) * len(counts), device=images.device), batch_size):
            rows, step = altered // len(counts), altered % len(counts)
            mask = ranked[rows] >= lowest[step, None, None]
            scores.append(scorer.scores(torch.where(mask[:, None], last[rows], first[rows]), rows))
    return Curve(tuple(count / pixels for count in counts), torch.cat(scores).view(-1, len(counts)))
