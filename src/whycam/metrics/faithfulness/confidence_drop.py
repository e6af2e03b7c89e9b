"""Average Drop, Increase in Confidence, Average Gain: the network's confidence in an image masked by a map.

Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv:1710.11063); Zhang et al., "Opti-CAM", CVIU 2024 (arXiv:2301.07002).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.checks import check_maps, value_range
from whycam.metrics.faithfulness.baselines import Fill, background
from whycam.metrics.scoring import Classes, ClassScorer, Preprocessing, ScoreFunction

_ROUNDING = 1e-5  # a sum of probabilities can exceed 1 by this much


@dataclass(frozen=True, eq=False)
class ConfidenceChange:
    """The score of each image before and after its map masked it.

    ``drop``, ``increase`` and ``gain`` need probabilities: they raise a ``WhycamError`` if a score lies outside [0, 1].
    Their means over images are the published Average Drop, Increase in Confidence and Average Gain.

    Attributes:
        before: (B,) the score of the image, Y.
        after: (B,) the score of the masked image, O.
    """

    before: Tensor
    after: Tensor

    @property
    def drop(self) -> Tensor:
        """(B,) max(0, Y − O) / Y in [0, 1]: the share of the confidence that is lost; 0 where Y is 0. Lower is better.

        A constant positive map hides nothing, so it loses nothing.
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
        """(B,) max(0, O − Y) / (1 − Y) in [0, 1]: the share of the doubt that is removed; 0 where Y is 1.

        Higher is better. If the network is almost certain, 1 − Y is a rounding error, and the gain is noise.
        """
        before, after = self._probabilities()
        return (after - before).relu() / torch.where(before < 1, 1 - before, 1)

    def _probabilities(self) -> tuple[Tensor, Tensor]:
        both = torch.stack([self.before, self.after])
        low, high = value_range(both)
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise WhycamError(
                f"drop, increase and gain need probabilities, and these scores go from {low:g} to {high:g}: give a "
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
    """Mask each image by its map, and compare the network's confidence before and after.

    The masked image is fill + (image − fill) · heat. ``heat`` is the map's positive evidence divided by its maximum
    (`whycam.cam.maps.heatmaps`): where heat is 0, only the fill is visible.

    Other libraries may report other numbers. Some omit the division by Y, which makes the drop smaller. Some skip the
    images whose map is broken, which changes the mean. Some stretch every map to its own minimum, which shows more of
    the image. Here a map that holds NaN raises an error, and a map without positive evidence hides the whole image and
    counts like any other.

    Args:
        model: maps (n, C, H, W) to (n, K) logits, and the score is the target's softmax probability; or to (n,) scores.
            A module runs in evaluation mode and keeps its own mode afterwards.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size.
        targets: the class to score: one, or one per image. None if ``model`` returns scores.
        fill: what replaces hidden pixels, see `background`.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        batch_size: altered images in one forward pass; changes the result only by rounding.

    Raises:
        WhycamError: shapes do not match, an image or the fill lies outside [0, 1], a map is not finite, or the model's
            output has neither form or is not finite.
    """
    maps = maps.float()
    check_maps(maps, images)
    scorer = ClassScorer.create(model, images, targets, preprocess, batch_size)
    with scorer.inference():
        hidden = background(images, fill)
        heat = heatmaps(maps, images.shape[2:]).to(images)[:, None]
        all_rows = torch.arange(len(images), device=images.device)
        before = scorer.scores(images, all_rows)
        after = [
            scorer.scores(torch.lerp(hidden[rows], images[rows], heat[rows]), rows)
            for rows in torch.split(all_rows, batch_size)
        ]
    return ConfidenceChange(before, torch.cat(after))
