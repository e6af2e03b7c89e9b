"""Infidelity: how badly a map predicts the change of the score under noise.

Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019 (arXiv:1901.09392).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import check_maps, check_noise
from whycam.metrics.scoring import Classes, ClassScorer, Preprocessing, ScoreFunction
from whycam.seeds import per_image


@dataclass(frozen=True, eq=False)
class Infidelity:
    """How badly maps predict the change of the score under noise; lower is better.

    Attributes:
        error: (B,) float64, the mean squared error of the prediction, in squared units of the score. The largest
            possible value is the mean squared change of the score; a map of zeros has it.
        unexplained: (B,) float64 in [0, 1], the error divided by the mean squared change; NaN where the score never
            changed.
    """

    error: Tensor
    unexplained: Tensor


def infidelity(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes = None,
    *,
    draws: int = 64,
    noise: float = 0.2,
    preprocess: Preprocessing | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Infidelity:
    """The error of the map Φ as a prediction of the score's change under noise I: E[(β IᵀΦ − (f(x) − f(x − I)))²].

    Raw maps have arbitrary units, so each map is multiplied by the factor β that fits best (the paper's optimal
    scaling): the least squares solution over the draws. This has two consequences. First, a map and its negative have
    the same score, since β can be negative. Second, a map without information does not have ``unexplained`` = 1: the
    fit of β explains 1/draws of the change. It explains far more if noise of any kind lowers the score, because
    clipping to [0, 1] gives I a nonzero mean, so that every map predicts nearly the same drop each time. Therefore
    compare a map's value with that of a noise map of the same size.

    Args:
        model: maps (n, C, H, W) to (n, K) logits, and the score is the target's softmax probability; or to (n,) scores.
            A module runs in evaluation mode and keeps its own mode afterwards.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly and spread evenly over the channels.
        targets: the class to score: one, or one per image. None if ``model`` returns scores.
        draws: noise samples per image, at least 2, because one factor is fitted to them.
        noise: the standard deviation of the noise that is subtracted from each value. x − I is clipped to [0, 1], and I
            is then the difference that remains.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        seed: one number, or one per image, so that an image's score does not depend on the rest of the batch.
        batch_size: altered images in one forward pass; changes the result only by rounding.

    Raises:
        WhycamError: shapes do not match, an image lies outside [0, 1], a map is not finite, there are too few draws,
            the noise is not a number above 0, or the model's output has neither form or is not finite.
    """
    check_maps(maps, images)
    scorer = ClassScorer.create(model, images, targets, preprocess, batch_size)
    check_noise("noise", noise)
    if draws < 2:
        raise WhycamError(f"draws must be at least 2, got {draws}: any map, scaled, predicts a single change exactly")
    generators = per_image("infidelity", seed, len(images))
    full = resize(in_double(maps.detach()), images.shape[2:])
    predictions, changes = [full.new_zeros(0)], [full.new_zeros(0)]
    every_row = torch.arange(len(images), device=images.device)
    with scorer.inference():
        before = scorer.scores(images, every_row)
        for rows in torch.split(every_row.repeat_interleave(draws), batch_size) if len(images) else ():
            grain = torch.stack([torch.randn(images.shape[1:], generator=generators[row]) for row in rows.tolist()])
            altered = (images[rows] - noise * grain.to(images)).clamp(0, 1)
            subtracted = in_double(images[rows] - altered).mean(dim=1).to(full.device)
            predictions.append((subtracted * full[rows.to(full.device)]).sum(dim=(1, 2)))
            changes.append(in_double(before[rows] - scorer.scores(altered, rows)).to(full.device))
    return _fitted(torch.cat(predictions).view(-1, draws), torch.cat(changes).view(-1, draws))


def _fitted(predicted: Tensor, change: Tensor) -> Infidelity:
    """Scale each row of (B, draws) predictions to fit its changes best, and return the remaining error."""
    power = predicted.square().sum(dim=1, keepdim=True)
    scale = (predicted * change).sum(dim=1, keepdim=True) / torch.where(power > 0, power, 1)
    error, total = (scale * predicted - change).square().mean(dim=1), change.square().mean(dim=1)
    return Infidelity(error, (error / total).clamp(max=1))
