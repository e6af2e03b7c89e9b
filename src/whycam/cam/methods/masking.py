"""Methods that show the network the image through masks made of a layer's channels: Score-CAM and its descendants.

All mask as Score-CAM's authors do in their code: a channel is resized linearly to the image (half-pixel centers, as
maps are for display) and min-max scaled there; the image is multiplied by it. A channel that is the same everywhere has
no such mask. It is not run, its weight is 0 and it takes no part in the softmax; pytorch-grad-cam and torch-cam run it
(as a black image, or as NaN).

"Score" is always the target's: a logit for a class, as in the papers' equations. Where an author's code takes the
softmax probability, ask for it: ``targets=Probability(3)``.
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
    """Channels weighed by the score of the image seen through them: w = softmax over channels of the score's increase.

    The paper's definition 3 is the increase s(x · mask_c) − s(baseline), its algorithm 1 takes the softmax of that over
    the channels, in which the baseline cancels: it is never run. ``weights="increase"`` leaves the softmax out, as the
    authors' own code does, over a black baseline (with the target ``Probability`` it is that code).
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

    ``on="input"`` adds the noise to the masked image instead, the paper's second form. All channels and images meet
    the same n noise fields, so that they differ by what they show and not by the draw; each mean is still the paper's.
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

    ``cumulative=True`` adds the fractions up, 1/n + … + i/n, as torch-cam does: the last masks are then brighter than
    the image (5.5 times for n = 10).
    """
    chosen = nonconstant(trace.activations)
    total = torch.zeros_like(chosen, dtype=trace.activations.dtype)
    for i in range(1, n + 1):
        factor = i * (i + 1) / 2 / n if cumulative else i / n
        total += _masked_scores(trace, chosen, batch_size, factor=factor)
    return trace.weighted(softmax_over(total / n, chosen))


@method("Group-CAM", paper="Zhang et al., 2021, arXiv:2103.13859", needs=("gradients", "reruns"), per_channel=True)
def groupcam(trace: LayerTrace, groups: Count = 32, quantile: Share = 0.7, batch_size: Count = BATCH_SIZE) -> Tensor:
    """Groups of Grad-CAM-weighed channels as masks over a blurred image, weighed by what they bring back of the score.

    Neighboring channels are summed in ``groups``, cut at 0 and at their own 70% quantile, and scaled to [0, 1]; the
    image shows through them in its own blurred copy (Gaussian, 51 wide, σ 50). The map is Σ (s(shown) − s(blurred)) ·
    mask. The authors' code takes softmax probabilities for s, and logits for the gradients.
    """
    network, maps = trace.network, trace.activations
    images = network.images.to(maps.dtype)
    size = images.shape[2:]
    weights = over_positions(trace.gradients) / maps[0, 0].numel()
    parts = (maps * weights.view(*weights.shape, *[1] * (maps.ndim - 2))).tensor_split(_cuts(maps.shape[1], groups), 1)
    masks = torch.stack([part.sum(dim=1) for part in parts], dim=1).relu()
    flat = masks.flatten(2)
    # One image at a time: torch takes no quantile of more than 2²⁴ numbers.
    bound = torch.stack([torch.quantile(one, quantile, dim=1, keepdim=True) for one in flat])
    masks = torch.where(flat > bound, flat, 0).view_as(masks)
    chosen = nonconstant(masks)
    blank = blurred(images)
    baseline = network.score_images(blank, torch.arange(len(images)), trace.target).scores

    def score(rows: Tensor, members: Tensor) -> Tensor:
        mask = image_masks(masks[rows, members], size)[:, None]
        return network.score_images(torch.lerp(blank[rows], images[rows], mask), rows, trace.target).scores

    gains = score_pairs(chosen, batch_size, score, maps) - baseline.to(maps)[:, None]
    # Scaled as the resized mask is, so that the resized sum is the sum of the resized.
    low, high = resized_range(masks, size)
    scaled = (masks - low) / torch.where(high > low, high - low, 1)
    return trace.weighted(torch.where(chosen, gains, 0), scaled)


def _cuts(channels: int, groups: int) -> list[int]:
    """Where to cut the channels into groups of equal size, the last one smaller."""
    each = -(-channels // groups)
    return list(range(each, channels, each))


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
        shown = images[rows] * masks[:, None]
        return network.score_images(shown if offset is None else shown + offset, rows, trace.target).scores

    return score_pairs(chosen, batch_size, score, maps)
