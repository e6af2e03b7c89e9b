"""What a little noise says about a map: how much it moves, and whether it foretells what the score does.

Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019 (arXiv:1901.09392).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import (
    Classes,
    Preprocessing,
    Question,
    ScoreFunction,
    check_images,
    check_maps,
)
from whycam.metrics.robustness.coherency import Explain, explained
from whycam.seeds import per_image


def max_sensitivity(
    explain: Explain,
    images: Tensor,
    *,
    radius: float = 0.02,
    draws: int = 10,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """How far a map moves, at most, when its image hardly does: lower is better.

    The largest ‖Φ(x′) − Φ(x)‖₂ / ‖Φ(x)‖₂ over images x′ whose values each differ from x's by less than the radius. It
    is relative, unlike the paper's, because raw maps have scales of their own. A map that ignores the image has 0.

    Args:
        explain: see `whycam.metrics.robustness.coherency.Explain`.
        images: (B, C, H, W) in [0, 1], before normalization.
        radius: the largest change of a value, drawn uniformly; what leaves [0, 1] is cut off.
        draws: how many x′ for each image. The maximum grows with them, so compare at equal draws only.
        seed: a number, or one for each image, so that its score does not depend on what else is in the batch.

    Returns:
        (B,) float64; NaN where Φ(x) is zero or a map is not finite.

    Raises:
        WhycamError: an image lies outside [0, 1], ``explain`` gives no maps, the radius is not a number above 0, there
            are no draws, or the number of seeds is not that of the images.
    """
    check_images(images)
    _check_noise("radius", radius)
    if draws < 1:
        raise WhycamError(f"draws must be at least 1, got {draws}")
    generators = per_image("max_sensitivity", seed, len(images))
    still = in_double(explained(explain, images)).flatten(1)
    farthest = still.new_zeros(len(still))
    for _ in range(draws if len(images) else 0):
        shift = torch.stack([torch.rand(images.shape[1:], generator=draw) for draw in generators])
        moved = (images + radius * (2 * shift - 1).to(images)).clamp(0, 1)
        distance = (in_double(explained(explain, moved)).flatten(1) - still).norm(dim=1)
        farthest = torch.maximum(farthest, distance)
    relative = farthest / still.norm(dim=1)
    return torch.where(relative.isfinite(), relative, torch.nan)


@dataclass(frozen=True, eq=False)
class Infidelity:
    """How badly maps foretell what noise does to the score; lower is better.

    Attributes:
        error: (B,) float64, the mean squared error of the forecast, in squared units of the score. A map that explains
            nothing has the mean squared change of the score itself, none has more.
        unexplained: (B,) float64 in [0, 1], that error as a share of the mean squared change; NaN where the score never
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
    """Whether noise I, taken from x, costs the score what the map Φ says: E[(β IᵀΦ − (f(x) − f(x−I)))²].

    Maps have units of their own, so each is given the factor β that fits best (the paper's optimal scaling): the least
    squares solution over the draws. Two things follow. A map and its negative score alike, for β may be negative. And a
    map that knows nothing does not leave all unexplained: β takes 1/draws, and far more where the score falls under
    noise of any kind, for what is cut off at 0 and 1 gives I a mean, and with it every map a forecast that hardly
    changes. So read a map's value beside that of a noise map of the same size.

    Args:
        model: (n, C, H, W) → (n, K) logits, of which a target's softmax probability is the score; or (n,) scores. A
            module is run in evaluation mode and left as it was.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size: resized to (H, W) bilinearly and spread evenly over the channels.
        targets: the class whose probability is watched: one, or one an image. None where ``model`` gives scores.
        draws: how many noises for each image, at least 2: one number is fitted to them.
        noise: the standard deviation of what is taken from each value. x − I is cut off at 0 and 1, and I is what was
            then really taken.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        seed: a number, or one for each image, so that its score does not depend on what else is in the batch.
        batch_size: altered images at a time; does not change the result beyond rounding.

    Raises:
        WhycamError: shapes do not belong together, an image lies outside [0, 1], a map is not finite, there are too few
            draws, the noise is not a number above 0, or the model's answer fits neither form or is not finite.
    """
    check_maps(maps, images)
    question = Question.about(model, images, targets, preprocess, batch_size)
    _check_noise("noise", noise)
    if draws < 2:
        raise WhycamError(f"draws must be at least 2, got {draws}: a single change is foretold by any map, scaled")
    generators = per_image("infidelity", seed, len(images))
    full = resize(in_double(maps.detach()), images.shape[2:])
    foretold, changes = [full.new_zeros(0)], [full.new_zeros(0)]
    every = torch.arange(len(images), device=images.device)
    with question.asking():
        before = question.scores(images, every)
        for rows in torch.split(every.repeat_interleave(draws), batch_size) if len(images) else ():
            grain = torch.stack([torch.randn(images.shape[1:], generator=generators[row]) for row in rows.tolist()])
            altered = (images[rows] - noise * grain.to(images)).clamp(0, 1)
            taken = in_double(images[rows] - altered).mean(dim=1).to(full.device)
            foretold.append((taken * full[rows.to(full.device)]).sum(dim=(1, 2)))
            changes.append(in_double(before[rows] - question.scores(altered, rows)).to(full.device))
    said, change = torch.cat(foretold).view(-1, draws), torch.cat(changes).view(-1, draws)
    power = said.square().sum(dim=1, keepdim=True)
    scale = (said * change).sum(dim=1, keepdim=True) / torch.where(power > 0, power, 1)
    error, total = (scale * said - change).square().mean(dim=1), change.square().mean(dim=1)
    return Infidelity(error, (error / total).clamp(max=1))


def _check_noise(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise WhycamError(f"{name} must be a number above 0, for images in [0, 1], got {value}")
