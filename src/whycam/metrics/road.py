"""ROAD: what removing the pixels that a map ranks high, or low, does to a network's answer.

Rong et al., "A consistent and efficient evaluation strategy for attribution methods", ICML 2022 (arXiv:2202.00449).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import resize
from whycam.errors import WhycamError
from whycam.metrics.impute import fill_in
from whycam.modules import first_tensor, in_eval_mode
from whycam.seeds import generator

PERCENTILES = (20.0, 50.0, 80.0)
"""Shares of the pixels that are removed, in percent."""
NOISE = 0.01
"""Standard deviation of what is added to pixels that were filled in, for values in [0, 1]: the authors' choice."""
_TOLERANCE = 1e-6  # leaves pixels right to about 1e-5, a thousandth of the noise

ScoreFunction = Callable[[Tensor], Tensor]


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
    targets: int | Sequence[int] | Tensor | None = None,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    noise: float = NOISE,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Road:
    """Remove and debias: the score without the pixels that a map ranks highest, and without those it ranks lowest.

    Removed pixels become the weighted mean of their neighbours (`fill_in`) plus a little noise, so that neither a
    hole's shape nor its colour is news to the network. An image's tie-breaks and noise are the same for all
    percentiles and both orders.

    Args:
        model: (n, C, H, W) → (n, K) logits, of which a target's softmax probability is the score; or (n,) scores. A
            module is run in evaluation mode and left as it was.
        images: (B, C, H, W) in [0, 1], before normalisation.
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
    targets = _checked(images, maps, targets)
    height, width = images.shape[2:]
    counts = removed_counts(percentiles, height * width)
    seeds = [seed] * len(images) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(images):
        raise WhycamError(f"{len(seeds)} seeds for {len(images)} images: give one, or one for each")
    places = range(len(images)) if isinstance(seed, int) else [0] * len(images)
    draws = [generator("road", *parts) for parts in zip(seeds, places, strict=True)]
    per_image = 2 * len(counts)
    at_once = max(1, batch_size // per_image)
    full = resize(maps.float(), (height, width)).to(images.device)
    found = []
    with in_eval_mode(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        for start in range(0, len(images), at_once):
            chosen = slice(start, start + at_once)
            ties = torch.stack([torch.rand(height, width, generator=draw) for draw in draws[chosen]])
            added = torch.stack([torch.randn(images.shape[1:], generator=draw) for draw in draws[chosen]])
            removed = removed_pixels(ranks(full[chosen], ties.to(full)), counts)
            # One share at a time: the more is removed, the longer it takes, and all would wait for the last.
            twice = images[chosen].repeat_interleave(2, dim=0)
            apart = [
                fill_in(twice, removed[:, :, place].flatten(0, 1), tolerance=_TOLERANCE) for place in range(len(counts))
            ]
            filled = torch.stack(apart, dim=1).flatten(0, 1)
            grain = noise * added.to(images).repeat_interleave(per_image, dim=0)
            mask = removed.flatten(0, 2)
            filled = torch.where(mask[:, None], (filled + grain).clamp(0, 1), filled)
            answer = model(filled if preprocess is None else preprocess(filled))
            wanted = None if targets is None else targets[chosen].repeat_interleave(per_image)
            found.append(_scores(answer, wanted, len(filled)).view(-1, 2, len(counts)))
    scores = torch.cat(found) if found else images.new_zeros(0, 2, len(counts))
    return Road(tuple(float(p) for p in percentiles), scores[:, 0], scores[:, 1])


def removed_counts(percentiles: Sequence[float], pixels: int) -> list[int]:
    """How many of ``pixels`` each percentile removes, rounded.

    Raises:
        WhycamError: there is no percentile, or one removes nothing or everything.
    """
    if not percentiles:
        raise WhycamError("no percentile is given; 50 removes half of the pixels")
    counts = [round(pixels * percentile / 100) for percentile in percentiles]
    for percentile, count in zip(percentiles, counts, strict=True):
        if not 0 < percentile < 100 or not 0 < count < pixels:
            raise WhycamError(
                f"percentile {percentile:g} of {pixels} pixels removes {'nothing' if count <= 0 else 'everything'}: "
                "percentiles lie between 0 and 100, and some pixels have to go and some to stay"
            )
    return counts


def ranks(maps: Tensor, tie_break: Tensor) -> Tensor:
    """Each pixel's place in its map's order, 0 the lowest value: (B, H, W) → (B, H, W) int64, a permutation each.

    Args:
        maps: (B, H, W).
        tie_break: (B, H, W); of equal values the one with the lower tie-break comes first.
    """
    values, ties = maps.flatten(1), tie_break.flatten(1)
    order = ties.argsort(dim=1)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, stable=True))
    places = torch.arange(values.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def removed_pixels(ranked: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, H, W) ranks → (B, 2, P, H, W) bool: the highest ``counts`` of each image, then the lowest."""
    total = ranked[0].numel() if len(ranked) else 0
    count = torch.tensor(counts, device=ranked.device).view(1, -1, 1, 1)
    places = ranked[:, None]
    return torch.stack([places >= total - count, places < count], dim=1)


def _checked(images: Tensor, maps: Tensor, targets: int | Sequence[int] | Tensor | None) -> Tensor | None:
    if images.ndim != 4 or maps.ndim != 3 or len(images) != len(maps):
        raise WhycamError(
            "images must be (B, C, H, W) and maps (B, h, w), one for each image, got "
            f"{tuple(images.shape)} and {tuple(maps.shape)}"
        )
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 1.0)
    if not images.is_floating_point() or not (low >= 0 and high <= 1):  # also true of NaN
        raise WhycamError(
            f"images must be floats in [0, 1], got {str(images.dtype).removeprefix('torch.')} from {low:g} to "
            f"{high:g}: pixels are filled in before they are normalised, so give normalisation as preprocess"
        )
    broken = ~maps.flatten(1).isfinite().all(dim=1)
    if bool(broken.any()):
        raise WhycamError(f"map {int(broken.int().argmax())} holds NaN or infinity: its pixels have no order")
    if targets is None:
        return None
    classes = (
        torch.as_tensor(targets, device=images.device).long().expand(len(images) if isinstance(targets, int) else -1)
    )
    if classes.shape != (len(images),):
        raise WhycamError(f"{len(classes)} targets for {len(images)} images: give one class, or one for each image")
    return classes


def _scores(answer: object, targets: Tensor | None, count: int) -> Tensor:
    output = first_tensor(answer)
    shape = None if output is None else tuple(output.shape)
    if output is None or shape is None or len(shape) != (1 if targets is None else 2) or shape[0] != count:
        expected = "one score an image; with classes to watch, give targets" if targets is None else "(n, K) logits"
        raise WhycamError(f"the model answered {count} images with {shape}, expected {expected}")
    if not bool(output.isfinite().all()):
        raise WhycamError("the model's answer to an altered image is NaN or infinite")
    if targets is None:
        return output.float()
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < output.shape[1]:
        raise WhycamError(
            f"targets must be classes from 0 to {output.shape[1] - 1}, got {sorted(set(targets.tolist()))}"
        )
    return output.float().softmax(dim=1).gather(1, targets[:, None])[:, 0]
