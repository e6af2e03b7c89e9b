"""Targets in use: shorthands resolved, scores taken and checked, altered images asked what the original was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.cam.targets import ClassScore, Predicted, Target, TargetLike
from whycam.errors import WhycamError


def freeze(target: Target, logits: Tensor) -> Target:
    """``target`` with everything fixed that depends on the unaltered images' logits (B, K)."""
    settle = getattr(target, "freeze", None)
    return settle(logits.detach()) if settle is not None else target


def score_rows(target: Target, logits: Tensor, rows: Tensor, original: Tensor) -> Tensor:
    """The target's scores of altered images.

    Args:
        target: frozen.
        logits: (n, K) of the altered images.
        rows: (n,) which image of the batch each stands in for.
        original: (B, K) of the unaltered images.

    Returns:
        (n,) scores.
    """
    at = getattr(target, "at", None)
    if at is not None:
        return scores_of(at(rows.to(logits.device)), logits)
    # A callable of the user's knows the whole batch only: put each altered image in its place among the others.
    scores = logits.new_empty(len(rows))
    remaining = list(range(len(rows)))
    places = rows.tolist()
    while remaining:
        here: dict[int, int] = {}
        for position in remaining:
            here.setdefault(places[position], position)
        chosen = list(here.values())
        batch = original.clone()
        batch[list(here)] = logits[chosen]
        scores[chosen] = scores_of(target, batch)[list(here)]
        done = set(chosen)
        remaining = [position for position in remaining if position not in done]
    return scores


def resolve_targets(targets: TargetLike | Mapping[str, TargetLike]) -> dict[str, Target]:
    """Name every target: a mapping keeps its names, a single one is called "target" ("predicted" for ``None``).

    Args:
        targets: ``None`` (the predicted class), an int, (B,) indices as a tensor or list, a list of targets (one per
            image), a callable, or a mapping of names to any of these, all explained from one forward pass.

    Raises:
        WhycamError: one of them is none of these.
    """
    if isinstance(targets, Mapping):
        if not targets:
            raise WhycamError("targets is an empty mapping; leave it out for the predicted class")
        return {str(name): resolve_target(target) for name, target in targets.items()}
    return {"predicted" if targets is None else "target": resolve_target(targets)}


def resolve_target(target: TargetLike) -> Target:
    """Turn one shorthand into a target; see `resolve_targets`."""
    if target is None:
        return Predicted()
    if isinstance(target, bool):
        raise WhycamError("a target is a class index, a tensor of them, or a callable; got a bool")
    if isinstance(target, int):
        return ClassScore(target)
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.dtype == torch.bool or target.ndim > 1:
            raise WhycamError(
                f"a target tensor holds one class index per image, (B,) of whole numbers; got {target.dtype} "
                f"of shape {tuple(target.shape)}"
            )
        return ClassScore(int(target) if target.ndim == 0 else target.long())
    if isinstance(target, list | tuple):
        target = [int(m) if isinstance(m, Tensor) and m.ndim == 0 and not m.is_floating_point() else m for m in target]
        if all(isinstance(index, int) and not isinstance(index, bool) for index in target):
            return ClassScore(torch.tensor(list(target), dtype=torch.long))
        return _PerImage(tuple(resolve_target(member) for member in target))
    if callable(target):
        return target
    raise WhycamError(
        f"a target is None (the predicted class), a class index, (B,) indices, or a callable on the logits; "
        f"got {type(target).__name__}"
    )


def retargeted(target: Target, change: Callable[[Target], Target]) -> Target:
    """What a method makes of a target; of a list of targets, of each of them."""
    if isinstance(target, _PerImage):
        return _PerImage(tuple(change(member) for member in target.members))
    return change(target)


@dataclass(frozen=True)
class _PerImage:
    """A list of targets, one per image."""

    members: tuple[Target, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        if len(self.members) != len(logits):
            raise WhycamError(f"{len(self.members)} targets are given for {len(logits)} images; give one each")
        return torch.cat([scores_of(member, row[None]) for member, row in zip(self.members, logits, strict=True)])

    def at(self, rows: Tensor) -> _PerImage:
        return _PerImage(tuple(self.members[row] for row in rows.tolist()))

    def freeze(self, logits: Tensor) -> _PerImage:
        if len(self.members) != len(logits):
            return self
        return _PerImage(tuple(freeze(member, row[None]) for member, row in zip(self.members, logits, strict=True)))


def scores_of(target: Target, logits: Tensor) -> Tensor:
    """Apply a target and check that it gave one score per image, connected to the logits."""
    scores = target(logits)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise WhycamError(
            f"target {_name(target)} must return one score per image, shape ({len(logits)},); it returned {got}"
        )
    return scores


def _name(target: Target) -> str:
    return getattr(target, "__name__", type(target).__name__)
