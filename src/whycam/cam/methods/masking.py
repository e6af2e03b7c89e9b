"""Methods that mask the image with a layer's channels and score the masked images: Score-CAM and its variants.

Masks are those of the code of Score-CAM's authors: a channel is resized linearly to the image (half-pixel centers, like
heatmaps) and min-max scaled; the image is multiplied by the result. A constant channel has no such mask: it is not run,
its weight is 0, and the softmax leaves it out. pytorch-grad-cam and torch-cam run it (as a black image, or as NaN).

"Score" is the target's score: for a class its logit, as in the papers' equations. The code of some authors uses the
softmax probability instead; ``targets=Probability(3)`` does so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.methods._masks import (
    BATCH_SIZE,
    blurred,
    image_masks,
    nonconstant,
    resized_range,
    score_pairs,
    softmax_over,
)
from whycam.cam.methods.gradient import over_positions
from whycam.cam.methods.registry import method
from whycam.cam.passes.trace import LayerTrace
from whycam.errors import WhycamError
from whycam.options import Count, Deviation, Share


@method("Score-CAM", paper="Wang et al., 2020, arXiv:1910.01279", needs=("reruns",), per_channel=True)
def scorecam(trace: LayerTrace, batch_size: Count = BATCH_SIZE, weights: str = "softmax") -> Tensor:
    """Channels weighted by the score of the image seen through them: w = softmax over channels of the score's increase.

    The paper's definition 3 is the increase s(x · mask_c) − s(baseline). Its algorithm 1 takes the softmax of that over
    the channels; the baseline cancels there, so it is not run. ``weights="increase"`` omits the softmax and uses a
    black baseline, as the authors' own code does (with the target ``Probability`` the result is that of their code).
    """
    chosen = nonconstant(trace.activations)
    scores = _masked_scores(trace, chosen, batch_size)
    if weights == "softmax":
        return trace.weighted(softmax_over(scores, chosen))
    if weights != "increase":
        raise WhycamError(f"Score-CAM's weights are 'softmax' or 'increase', not {weights!r}")
    black = torch.zeros_like(trace.network.images)
    baseline = trace.network.score_images(black, torch.arange(len(black)), trace.target).scores.to(scores)
    return trace.weighted(torch.where(chosen, scores - baseline[:, None], 0))


@method("SS-CAM", paper="Naidu & Michael, 2020, arXiv:2006.14255", needs=("reruns",), per_channel=True)
def sscam(
    trace: LayerTrace, n: Count = 35, sigma: Deviation = 2.0, on: str = "mask", batch_size: Count = BATCH_SIZE
) -> Tensor:
    """Score-CAM with each channel's score averaged over n noisy masks, σ in units of the mask's range.

    ``on="input"`` adds the noise to the masked image instead, the paper's second form. All channels and images get the
    same n noise fields, so that their scores do not differ by chance; each mean is still the paper's.
    """
    if on not in ("mask", "input"):
        raise WhycamError(f"SS-CAM's noise goes on the 'mask' or on the 'input', not on {on!r}")
    images = trace.network.images
    shape = images.shape[2:] if on == "mask" else images.shape[1:]
    draw = trace.network.generator("sscam", on)
    chosen = nonconstant(trace.activations)
    total = torch.zeros_like(chosen, dtype=trace.activations.dtype)
    for _ in range(n):
        noise = (sigma * torch.randn(shape, generator=draw, dtype=torch.float64)).to(trace.activations)
        if on == "mask":
            total += _masked_scores(trace, chosen, batch_size, shift=noise)
        else:
            total += _masked_scores(trace, chosen, batch_size, offset=noise)
    return trace.weighted(softmax_over(total / n, chosen))


@method("IS-CAM", paper="Naidu et al., 2020, arXiv:2010.03023", needs=("reruns",), per_channel=True)
def iscam(trace: LayerTrace, n: Count = 10, cumulative: bool = False, batch_size: Count = BATCH_SIZE) -> Tensor:
    """Score-CAM with each channel's score averaged while its mask is faded in: i/n of it, i = 1 … n.

    ``cumulative=True`` uses the cumulative fractions 1/n + … + i/n, as torch-cam does: the last masks are then brighter
    than the image (5.5 times for n = 10).
    """
    chosen = nonconstant(trace.activations)
    total = torch.zeros_like(chosen, dtype=trace.activations.dtype)
    for i in range(1, n + 1):
        factor = i * (i + 1) / 2 / n if cumulative else i / n
        total += _masked_scores(trace, chosen, batch_size, factor=factor)
    return trace.weighted(softmax_over(total / n, chosen))


@method("Group-CAM", paper="Zhang et al., 2021, arXiv:2103.13859", needs=("gradients", "reruns"), per_channel=True)
def groupcam(trace: LayerTrace, groups: Count = 32, quantile: Share = 0.7, batch_size: Count = BATCH_SIZE) -> Tensor:
    """Groups of Grad-CAM-weighted channels as masks over a blurred image, weighted by the score that they restore.

    Adjacent channels are summed into ``groups`` masks; values below 0 and below the mask's own 70% quantile are set to
    0, and the mask is scaled to [0, 1]. The masked image blends the image and a blurred copy (Gaussian, 51 wide, σ 50).
    The map is Σ (s(masked) − s(blurred)) · mask. The authors' code takes softmax probabilities for s, and logits for
    the gradients.
    """
    network, maps = trace.network, trace.activations
    images = network.images.to(maps.dtype)
    size = images.shape[2:]
    weights = over_positions(trace.gradients) / maps[0, 0].numel()
    parts = (maps * weights.view(*weights.shape, *[1] * (maps.ndim - 2))).tensor_split(_cuts(maps.shape[1], groups), 1)
    masks = torch.stack([part.sum(dim=1) for part in parts], dim=1).relu()
    flat = masks.flatten(2)
    # One image at a time: torch computes no quantile of more than 2²⁴ numbers.
    bound = torch.stack([torch.quantile(image, quantile, dim=1, keepdim=True) for image in flat])
    masks = torch.where(flat > bound, flat, 0).view_as(masks)
    chosen = nonconstant(masks)
    blurred_images = blurred(images)
    baseline = network.score_images(blurred_images, torch.arange(len(images)), trace.target).scores

    def score(rows: Tensor, members: Tensor) -> Tensor:
        mask = image_masks(masks[rows, members], size)[:, None]
        return network.score_images(torch.lerp(blurred_images[rows], images[rows], mask), rows, trace.target).scores

    gains = score_pairs(chosen, batch_size, score, maps) - baseline.to(maps)[:, None]
    # Scaled by the range of the resized masks, so that the resized sum equals the sum of the resized masks.
    low, high = resized_range(masks, size)
    scaled = (masks - low) / torch.where(high > low, high - low, 1)
    return trace.weighted(torch.where(chosen, gains, 0), scaled)


def _cuts(channels: int, groups: int) -> list[int]:
    """The first channel of each group but the first; the groups have equal size, the last one may be smaller."""
    size = -(-channels // groups)
    return list(range(size, channels, size))


def _masked_scores(
    trace: LayerTrace,
    chosen: Tensor,
    batch_size: int,
    *,
    factor: float = 1.0,
    shift: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """(B, C) scores of the images through their channels' masks: x · (factor · mask + shift) + offset.

    ``shift`` is (H, W), ``offset`` (C, H, W). Channels not in ``chosen`` (B, C) are not run and score 0.
    """
    network, maps = trace.network, trace.activations
    images = network.images.to(maps.dtype)

    def score(rows: Tensor, channels: Tensor) -> Tensor:
        masks = factor * image_masks(maps[rows, channels], images.shape[2:])
        if shift is not None:
            masks = masks + shift
        masked = images[rows] * masks[:, None]
        return network.score_images(masked if offset is None else masked + offset, rows, trace.target).scores

    return score_pairs(chosen, batch_size, score, maps)
