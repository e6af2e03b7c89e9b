"""Methods that change a layer's output and run what follows it: Ablation-CAM and Recipro-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.methods._masks import BATCH_SIZE, score_pairs
from whycam.cam.methods.registry import method
from whycam.cam.network.head import pooled_linear_head
from whycam.cam.passes.trace import LayerTrace
from whycam.cam.targets.classification import ClassScore, Predicted, Probability, Target
from whycam.errors import WhycamError
from whycam.options import Count

# Altered logits that are held at once where no network has to run for them.
_LOGITS = 1 << 22


@method(
    "Ablation-CAM",
    paper="Desai & Ramaswamy, 2020, WACV, doi:10.1109/WACV45572.2020.9093360",
    needs=("reruns",),
    per_channel=True,
)
def ablationcam(trace: LayerTrace, relative: str = "size", batch_size: Count = BATCH_SIZE) -> Tensor:
    """Channels weighed by how far the score drops without them: w_c = (y − y without c) / |y|.

    The paper divides by y, which turns every sign around where y < 0, so that a channel that carries the class counts
    as evidence against it: ``relative="score"`` does that, ``relative="none"`` divides by nothing.
    A channel that is 0 everywhere changes nothing and is not run. Where only a mean over positions and a linear layer
    follow, y without c is known without running anything.
    """
    dropped = _without_each(trace, batch_size)
    score = trace.scores.to(dropped)
    if relative not in ("size", "score", "none"):
        raise WhycamError(f"Ablation-CAM is relative to the score's 'size', the 'score' or 'none', not {relative!r}")
    unit = {"size": score.abs(), "score": score, "none": torch.ones_like(score)}[relative]
    drop = (score[:, None] - dropped) / torch.where(unit != 0, unit, 1)[:, None]
    return trace.weighted(drop)


def _without_each(trace: LayerTrace, batch_size: int) -> Tensor:
    """(B, C) scores with one channel set to 0."""
    network, maps = trace.network, trace.activations
    active = (maps != 0).flatten(2).any(dim=2)
    known = not network.reads_whole_output(trace.target)  # by the logits alone
    head = pooled_linear_head(network.model, maps, trace.logits, autocast=network.autocast) if known else None
    if head is not None:
        mean = maps.flatten(2).mean(dim=2)
        columns = head.weight.detach().to(mean).T
        logits = trace.logits.to(mean)

        def score(rows: Tensor, channels: Tensor) -> Tensor:
            altered = logits[rows] - mean[rows, channels][:, None] * columns[channels]
            return network.score_logits(altered, rows, trace.target).scores

        # Nothing runs here: the chunks are bounded by memory alone.
        batch_size = max(batch_size, _LOGITS // logits.shape[1])
    else:

        def score(rows: Tensor, channels: Tensor) -> Tensor:
            altered = maps[rows]
            altered[torch.arange(len(rows), device=rows.device), channels] = 0
            return network.score_activations(trace.layer, altered, rows, trace.target).scores

    scores = score_pairs(active, batch_size, score, maps)
    return torch.where(active, scores, trace.scores.to(maps)[:, None])


def _probability(target: Target) -> Target:
    if isinstance(target, Predicted):
        return _PredictedProbability()
    return Probability(target.index) if type(target) is ClassScore else target


class _PredictedProbability:
    """The softmax probability of the predicted class."""

    def freeze(self, logits: Tensor) -> Probability:
        return Probability(logits.argmax(dim=1))

    def __call__(self, logits: Tensor) -> Tensor:
        return self.freeze(logits)(logits)


@method("Recipro-CAM", paper="Byun & Lee, 2022, arXiv:2209.14074", needs=("reruns",), retarget=_probability)
def reciprocam(
    trace: LayerTrace, gaussian: bool = False, baseline: str = "min", batch_size: Count = BATCH_SIZE
) -> Tensor:
    """The class's probability when the network goes on from a single position of the layer, for each position.

    Less the smallest of them, so that the heatmap is the paper's min-max scaled one; ``baseline="empty"`` takes off the
    probability from a layer that is 0 everywhere instead, and the map has a sign: positive speaks for the class.
    ``gaussian=True`` keeps the neighbors as well, weighed (¼, ½, ¼) along each axis. Tokens without a position stay.
    """
    if baseline not in ("min", "empty"):
        raise WhycamError(f"Recipro-CAM's baseline is 'min' or 'empty', not {baseline!r}")
    network, maps = trace.network, trace.activations
    places = maps.shape[2:]
    masks = _place_masks(places, maps, gaussian=gaussian)
    if baseline == "empty":
        masks = torch.cat([masks, torch.zeros_like(masks[:1])])

    def score(rows: Tensor, parts: Tensor) -> Tensor:
        kept = maps[rows] * masks[parts][:, None]
        return network.score_activations(trace.layer, kept, rows, trace.target).scores

    every = torch.ones(len(maps), len(masks), dtype=torch.bool, device=maps.device)
    scores = score_pairs(every, batch_size, score, maps)
    each = scores[:, : places.numel()]
    least = scores[:, -1:] if baseline == "empty" else each.amin(dim=1, keepdim=True)
    return (each - least).view(len(maps), *places)


def _place_masks(places: torch.Size, like: Tensor, *, gaussian: bool) -> Tensor:
    """(P, …positions): for each position, what of the layer is kept."""
    masks = like.new_ones(1)
    for length in places:
        axis = torch.eye(length, dtype=like.dtype, device=like.device)
        if gaussian:
            near = torch.ones(length - 1, dtype=like.dtype, device=like.device)
            axis = axis / 2 + (torch.diag(near, 1) + torch.diag(near, -1)) / 4
        # Outer product over the axes: rows are the positions kept, columns those they are spread over.
        masks = torch.einsum("p...,qj->pq...j", masks, axis).flatten(0, 1)
    return masks
