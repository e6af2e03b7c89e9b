"""What is explained: a target turns logits into one score per image.

A target is any callable ``(logits (B, K)) -> scores (B,)`` that is differentiable in the logits and treats images
independently. The classes here are the usual ones; an int, a tensor or ``None`` stands for the simplest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.errors import WhycamError

Target = Callable[[Tensor], Tensor]
Indices = int | Sequence[int] | Tensor
TargetLike = Target | Indices | None


@dataclass(frozen=True, eq=False)
class ClassScore:
    """The logit of one class: an int for all images, or (B,) indices, one per image."""

    index: int | Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, self.index)


@dataclass(frozen=True, eq=False)
class Probability:
    """The softmax probability of one class; saturates, so a confident prediction has nearly no gradient."""

    index: int | Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits.softmax(dim=1), self.index)


@dataclass(frozen=True, eq=False)
class Margin:
    """Why ``a`` rather than ``b``: the difference of two logits."""

    a: int | Tensor
    b: int | Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, self.a) - _pick(logits, self.b)


class Predicted:
    """The logit of whichever class the network predicts for each image."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, logits.argmax(dim=1))  # amax would share the gradient among equal logits

    def __repr__(self) -> str:
        return "Predicted()"


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
        if all(isinstance(index, int) and not isinstance(index, bool) for index in target):
            return ClassScore(torch.tensor(list(target), dtype=torch.long))
        return _PerImage(tuple(resolve_target(member) for member in target))
    if callable(target):
        return target
    raise WhycamError(
        f"a target is None (the predicted class), a class index, (B,) indices, or a callable on the logits; "
        f"got {type(target).__name__}"
    )


@dataclass(frozen=True)
class _PerImage:
    """A list of targets, one per image."""

    members: tuple[Target, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        if len(self.members) != len(logits):
            raise WhycamError(f"{len(self.members)} targets are given for {len(logits)} images; give one each")
        return torch.cat([member(row[None]) for member, row in zip(self.members, logits, strict=True)])


def scores_of(target: Target, logits: Tensor) -> Tensor:
    """Apply a target and check that it gave one score per image, connected to the logits."""
    scores = target(logits)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise WhycamError(
            f"target {_name(target)} must return one score per image, shape ({len(logits)},); it returned {got}"
        )
    return scores


def _pick(logits: Tensor, index: int | Tensor) -> Tensor:
    images, classes = logits.shape
    indices = torch.as_tensor(index, device=logits.device)
    if indices.ndim and len(indices) != images:
        raise WhycamError(f"{len(indices)} target classes are given for {images} images; give one, or one per image")
    lowest, highest = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise WhycamError(f"target class {wrong} does not exist; this model has classes 0 to {classes - 1}")
    return logits.gather(1, indices.expand(images)[:, None])[:, 0]


def _name(target: Target) -> str:
    return getattr(target, "__name__", type(target).__name__)
