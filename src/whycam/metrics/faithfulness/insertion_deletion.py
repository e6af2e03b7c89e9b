"""Deletion and insertion: the score while an image's pixels go, or come, in the order in which a map ranks them.

Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018 (arXiv:1806.07421).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.baselines import Fill, background
from whycam.metrics.faithfulness.ranking import ranks
from whycam.metrics.faithfulness.scoring import Classes, Preprocessing, Question, ScoreFunction, check_maps
from whycam.seeds import per_image

STEPS = 32
"""Into how many equal parts the pixels are divided."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The score as more and more pixels were altered.

    Attributes:
        shares: P + 1 shares of the pixels that were altered, from 0 to 1: removed in deletion, restored in insertion.
        scores: (B, P + 1) the score at each.
    """

    shares: tuple[float, ...]
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """(B,) below the curve, by the trapezoid rule: in [0, 1] for probabilities.

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
    """Start from the image and put the fill in the place of its pixels, those that the map ranks highest first.

    The fill biases which method comes out best: holes have a color and edges, and the network answers to these as
    well. Report several ("black", "mean", "blur"), and `insertion` beside; `road` fills holes in from around them.

    Args:
        model: (n, C, H, W) → (n, K) logits, of which a target's softmax probability is the score; or (n,) scores. A
            module is run in evaluation mode and left as it was.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly, then ranked by their signed value. Pixels of
            equal rank are put in random order, so that each step alters its share.
        targets: the class whose probability is watched: one, or one an image. None where ``model`` gives scores.
        fill: what takes the place of pixels, see `background`.
        steps: P, into how many parts the pixels are divided, equal up to one pixel.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        seed: of tie-breaks: a number, or one for each image, so that its curve does not depend on what else is in the
            batch. `deletion` and `insertion` break ties alike.
        batch_size: altered images at a time; does not change the result beyond rounding.

    Raises:
        WhycamError: shapes do not belong together, an image or the fill lies outside [0, 1], a map is not finite, there
            are more steps than pixels or none, or the model's answer fits neither form or is not finite.
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
    """Start from the fill and put the image's pixels in its place, those that the map ranks highest first.

    With the same fill and no ties this is the deletion of the negated map, read backwards. What else there is to know,
    the fill's bias above all, is said at `deletion`; so are arguments and errors.
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
    question = Question.about(model, images, targets, preprocess, batch_size)
    size = images.shape[2:]
    pixels = size.numel()
    if not 1 <= steps <= pixels:
        raise WhycamError(f"steps must lie between 1 and the {pixels} pixels of an image, got {steps}")
    counts = [round(step * pixels / steps) for step in range(steps + 1)]
    with question.asking():
        ties = torch.empty(len(images), *size)
        for own, draw in zip(ties, per_image("curves", seed, len(images)), strict=True):
            own.uniform_(generator=draw)
        full = resize(maps, size).to(images.device)
        ranked = ranks(full, ties.to(full))
        hidden = background(images, fill)
        first, last = (hidden, images) if inserting else (images, hidden)
        # A pixel of at least this rank is altered.
        lowest = pixels - torch.tensor(counts, device=images.device)
        found = []
        everything = torch.arange(len(images) * len(counts), device=images.device)
        for altered in torch.split(everything, batch_size):
            rows, step = altered // len(counts), altered % len(counts)
            mask = ranked[rows] >= lowest[step, None, None]
            found.append(question.scores(torch.where(mask[:, None], last[rows], first[rows]), rows))
    return Curve(tuple(count / pixels for count in counts), torch.cat(found).view(-1, len(counts)))
