"""Average Drop, Increase in Confidence, Average Gain: what a network says of an image that shows only what a map marks.

Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv:1710.11063); Zhang et al., "Opti-CAM", CVIU 2024 (arXiv:2301.07002).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.baselines import Fill, background
from whycam.metrics.faithfulness.scoring import Classes, Preprocessing, Question, ScoreFunction, check_maps

_SLACK = 1e-5  # a sum of probabilities may be rounded to a little more than 1


@dataclass(frozen=True, eq=False)
class ConfidenceChange:
    """The score of each image as it is, and of what its map leaves of it.

    ``drop``, ``increase`` and ``gain`` are of probabilities: each raises a ``WhycamError`` where a score lies outside
    [0, 1]. Their means over images are the published Average Drop, Increase in Confidence and Average Gain.

    Attributes:
        before: (B,) the score of the image, Y.
        after: (B,) the score of what the map leaves of it, O.
    """

    before: Tensor
    after: Tensor

    @property
    def drop(self) -> Tensor:
        """(B,) max(0, Y − O) / Y in [0, 1]: the share of the confidence that is lost; 0 where Y is 0. Lower is better.

        A map that is positive and the same everywhere hides nothing and so loses nothing.
        """
        before, after = self._probabilities()
        return (before - after).relu() / torch.where(before > 0, before, 1)

    @property
    def increase(self) -> Tensor:
        """(B,) 1 where O > Y, else 0. Higher is better."""
        before, after = self._probabilities()
        return (after > before).to(before)

    @property
    def gain(self) -> Tensor:
        """(B,) max(0, O − Y) / (1 − Y) in [0, 1]: the share of the doubt that is lost; 0 where Y is 1.

        Higher is better. Where the network is all but certain, 1 − Y is a few units of rounding, and the gain is noise.
        """
        before, after = self._probabilities()
        return (after - before).relu() / torch.where(before < 1, 1 - before, 1)

    def _probabilities(self) -> tuple[Tensor, Tensor]:
        both = torch.stack([self.before, self.after])
        low, high = (float(both.min()), float(both.max())) if both.numel() else (0.0, 1.0)
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise WhycamError(
                f"drop, increase and gain are of probabilities, and these scores go from {low:g} to {high:g}: give a "
                "model of logits with targets, or a function whose scores lie in [0, 1]"
            )
        before, after = both.clamp(0, 1)
        return before, after


def confidence_change(
    model: nn.Module | ScoreFunction,
    images: Tensor,
    maps: Tensor,
    targets: Classes = None,
    *,
    fill: Fill = "black",
    preprocess: Preprocessing | None = None,
    batch_size: int = 64,
) -> ConfidenceChange:
    """Show the network each image through its map, and compare its confidence.

    What it sees is fill + (image − fill) · heat, where heat is the map's positive evidence divided by its largest
    (`whycam.cam.maps.heatmaps`): where there is none, nothing of the image is left.

    Numbers of other libraries need not be comparable: some leave out the division by Y, so that their drop is smaller,
    or discard the images whose map is broken, so that their mean is of the survivors. Here a map that holds NaN is
    refused, and one without positive evidence hides everything and is counted like any other. Some also stretch every
    map to its own minimum, which shows more of the image.

    Args:
        model: (n, C, H, W) → (n, K) logits, of which a target's softmax probability is the score; or (n,) scores. A
            module is run in evaluation mode and left as it was.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size.
        targets: the class whose probability is watched: one, or one an image. None where ``model`` gives scores.
        fill: what is shown in place of hidden pixels, see `background`.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        batch_size: images at a time; does not change the result beyond rounding.

    Raises:
        WhycamError: shapes do not belong together, an image or the fill lies outside [0, 1], a map is not finite, or
            the model's answer fits neither form or is not finite.
    """
    maps = maps.float()
    check_maps(maps, images)
    question = Question.about(model, images, targets, preprocess, batch_size)
    with question.asking():
        hidden = background(images, fill)
        heat = heatmaps(maps, images.shape[2:]).to(images)[:, None]
        everyone = torch.arange(len(images), device=images.device)
        before = question.scores(images, everyone)
        after = [
            question.scores(torch.lerp(hidden[rows], images[rows], heat[rows]), rows)
            for rows in torch.split(everyone, batch_size)
        ]
    return ConfidenceChange(before, torch.cat(after))
