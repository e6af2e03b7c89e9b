"""Methods that change a layer's output and run the rest of the network: Ablation-CAM and Recipro-CAM."""

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

# Numbers in one chunk of perturbed logits, if no network has to run for them.
_MAX_LOGITS = 1 << 22


@method(
    "Ablation-CAM",
    paper="Desai & Ramaswamy, 2020, WACV, doi:10.1109/WACV45572.2020.9093360",
    needs=("reruns",),
    per_channel=True,
)
def ablationcam(trace: LayerTrace, relative: str = "size", batch_size: Count = BATCH_SIZE) -> Tensor:
    """Channels weighted by how far the score drops without them: w_c = (y − y without c) / |y|.

    The paper divides by y. This changes every sign if y < 0, so that a channel that supports the class counts as
    evidence against it. ``relative="score"`` divides by y, ``relative="none"`` does not divide.
    A channel that is 0 everywhere changes nothing and is not run. If only a mean over positions and a linear layer
    follow, y without c is computed in closed form, without running the network.
    """
    dropped = _without_each(trace, batch_size)
    score = trace.scores.to(dropped)
    if relative not in ("size", "score", "none"):
        raise WhycamError(f"Ablation-CAM is relative to the score's 'size', the 'score' or 'none', not {relative!r}")
    unit = {"size": score.abs(), "score": score, "none": torch.ones_like(score)}[relative]
    drop = (score[:, None] - dropped) / torch.where(unit != 0, unit, 1)[:, None]
    return trace.weighted(drop)


def _without_each(trace: LayerTrace, batch_size: int) -> Tensor:
    """(B, C) scores with channel c set to 0."""
    network, maps = trace.network, trace.activations
    active = (maps != 0).flatten(2).any(dim=2)
    logits_suffice = not network.reads_whole_output(trace.target)
    head = pooled_linear_head(network.model, maps, trace.logits, autocast=network.autocast) if logits_suffice else None
    if head is not None:
        mean = maps.flatten(2).mean(dim=2)
        columns = head.weight.detach().to(mean).T
        logits = trace.logits.to(mean)

        def score(rows: Tensor, channels: Tensor) -> Tensor:
            ablated = logits[rows] - mean[rows, channels][:, None] * columns[channels]
            return network.score_logits(ablated, rows, trace.target).scores

        # The network does not run here, so only memory limits the chunks.
        batch_size = max(batch_size, _MAX_LOGITS // logits.shape[1])
    else:

        def score(rows: Tensor, channels: Tensor) -> Tensor:
            ablated = maps[rows]
            ablated[torch.arange(len(rows), device=rows.device), channels] = 0
            return network.score_activations(trace.layer, ablated, rows, trace.target).scores

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
    """The class's probability if the layer's output is kept at a single position and 0 elsewhere, for each position.

    The smallest of these probabilities is subtracted, so that the heatmap equals the paper's min-max scaled map.
    ``baseline="empty"`` subtracts the probability for a layer that is 0 everywhere instead; positive values are then
    evidence for the class, negative ones against it. ``gaussian=True`` also keeps the neighbors, weighted (¼, ½, ¼)
    along each axis. Tokens without a position are kept.
    """
    if baseline not in ("min", "empty"):
        raise WhycamError(f"Recipro-CAM's baseline is 'min' or 'empty', not {baseline!r}")
    network, maps = trace.network, trace.activations
    positions = maps.shape[2:]
    masks = _position_masks(positions, maps, gaussian=gaussian)
    if baseline == "empty":
        masks = torch.cat([masks, torch.zeros_like(masks[:1])])

    def score(rows: Tensor, parts: Tensor) -> Tensor:
        kept = maps[rows] * masks[parts][:, None]
        return network.score_activations(trace.layer, kept, rows, trace.target).scores

    all_pairs = torch.ones(len(maps), len(masks), dtype=torch.bool, device=maps.device)
    scores = score_pairs(all_pairs, batch_size, score, maps)
    position_scores = scores[:, : positions.numel()]
    reference = scores[:, -1:] if baseline == "empty" else position_scores.amin(dim=1, keepdim=True)
    return (position_scores - reference).view(len(maps), *positions)


def _position_masks(positions: torch.Size, like: Tensor, *, gaussian: bool) -> Tensor:
    """(P, …positions): for each position, the mask that keeps it."""
    masks = like.new_ones(1)
    for length in positions:
        axis = torch.eye(length, dtype=like.dtype, device=like.device)
        if gaussian:
            ones = torch.ones(length - 1, dtype=like.dtype, device=like.device)
            axis = axis / 2 + (torch.diag(ones, 1) + torch.diag(ones, -1)) / 4
        # Outer product over the axes; q is the position that is kept, j runs over the mask.
        masks = torch.einsum("p...,qj->pq...j", masks, axis).flatten(0, 1)
    return masks
