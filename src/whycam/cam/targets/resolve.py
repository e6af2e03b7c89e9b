"""Targets in use: shorthands resolved, scores taken and checked, altered images asked what the original was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.cam.targets.class_names import ClassNames
from whycam.cam.targets.classification import ClassScore, Predicted, Target, TargetLike
from whycam.cam.targets.indices import numbered
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, first_tensor, is_per_image, rows_of, without_inference_tensors


def wants_output(target: Target) -> bool:
    """Whether the target is shown everything that the network returns instead of its leading tensor."""
    return bool(getattr(target, "wants_output", False))


def leading(output: object, images: int) -> Tensor | None:
    """The leading tensor of what a network returned, (B, K) logits as a rule; None where none is the batch's.

    At least float32: half-precision logits would make scores too coarse to differentiate well.
    """
    logits = None if is_per_image(output, images) else first_tensor(output)
    if logits is None or logits.ndim == 0 or len(logits) != images:
        return None
    return at_least_float32(logits)


def freeze(target: Target, logits: Tensor, output: object) -> Target:
    """``target`` with everything fixed that depends on the network's answer to the unaltered images."""
    _check_count(target, logits)
    settle: Callable[[Any], Target] | None = getattr(target, "freeze", None)
    if settle is None:
        return target
    with torch.no_grad():
        return settle(output if wants_output(target) else logits.detach())


def scores_of(target: Target, logits: Tensor, output: object = None) -> Tensor:
    """Apply a target and check that it gave one score per image.

    Args:
        target: any.
        logits: (n, K), or (n, 0) where the network returns no leading tensor.
        output: what the network returned, for targets that want it.

    Raises:
        WhycamError: it gave something else.
    """
    _check_count(target, logits)
    shown: Any = output if wants_output(target) else logits
    scores = target(shown)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise WhycamError(
            f"target {_name(target)} must return one score per image, shape ({len(logits)},); it returned {got}"
        )
    return scores


def score_rows(target: Target, logits: Tensor, rows: Tensor, original: Tensor, output: object = None) -> Tensor:
    """The target's scores of altered images.

    Args:
        target: frozen.
        logits: (n, K) of the altered images.
        rows: (n,) which image of the batch each stands in for.
        original: (B, K) of the unaltered images.
        output: what the network returned for the altered images, for targets that want it.

    Returns:
        (n,) scores.

    Raises:
        WhycamError: the target wants the whole output and cannot be asked about some of the images.
    """
    at = getattr(target, "at", None)
    if at is not None:
        return scores_of(at(rows.to(logits.device)), logits, output)
    if wants_output(target):
        raise WhycamError(
            f"target {_name(target)} reads the network's whole output and has no at(rows), so it cannot be asked about "
            "altered images; give it one, or write it as whycam.WholeOutput(function)"
        )
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


def repeat_target(target: Target, images: int, rows: Tensor) -> Target:
    """What to ask of copies of a batch of ``images``, one after the other: of each what the target asks of the batch.

    ``rows`` (n,) is which image each is a copy of.
    """
    at = getattr(target, "at", None)
    if at is not None:
        repeated: Target = at(rows)
        return repeated
    copies = len(rows) // images
    return target if copies == 1 else _Copies(target, images, copies)


def mirrored(target: Target, logits: Tensor, width: int) -> Target:
    """What to ask of the mirrored images.

    Args:
        target: frozen.
        logits: of the unaltered images; (B, K) has no places.
        width: of the images.

    Raises:
        WhycamError: the target looks at places, as far as one can know, and cannot be mirrored.
    """
    turn = getattr(target, "mirrored", None)
    if turn is not None:
        turned: Target = turn(width)
        return turned
    if isinstance(target, _PerImage):
        return _PerImage(tuple(mirrored(member, logits, width) for member in target.members))
    if wants_output(target) or logits.ndim > 2:
        raise WhycamError(
            f"augmented mirrors the images, and target {_name(target)} has no mirrored(width) to go with them: "
            "give it one, or use noisy"
        )
    return target


def resolve_targets(
    targets: TargetLike | Mapping[str, TargetLike], classes: ClassNames | None = None
) -> dict[str, Target]:
    """Name every target: a mapping keeps its names, a single one is called "target" ("predicted" for ``None``).

    Args:
        targets: ``None`` (the predicted class), a class's index or name, (B,) of either, a list of targets (one per
            image), a callable, or a mapping of names to any of these, all explained from one forward pass.
        classes: what the classes are called.

    Raises:
        WhycamError: one of them is none of these, or an unknown class.
    """
    if isinstance(targets, Mapping):
        if not targets:
            raise WhycamError("targets is an empty mapping; leave it out for the predicted class")
        return {str(name): resolve_target(target, classes) for name, target in targets.items()}
    return {"predicted" if targets is None else "target": resolve_target(targets, classes)}


def resolve_target(target: TargetLike, classes: ClassNames | None = None) -> Target:
    """Turn one shorthand into a target; see `resolve_targets`."""
    if target is None:
        return Predicted()
    if isinstance(target, np.ndarray | np.generic):
        target = torch.as_tensor(target) if target.dtype.kind in "biuf" else target.tolist()
    if isinstance(target, bool):
        raise WhycamError("a target is a class's index or name, several of them, or a callable; got a bool")
    index = (classes or ClassNames({})).index
    if isinstance(target, int | str):
        return ClassScore(numbered(target, index))
    if isinstance(target, Tensor):
        return _from_tensor(target)
    if isinstance(target, list | tuple):
        return _from_list(target, classes)
    if callable(target):
        return _from_callable(target, index)
    raise WhycamError(
        f"a target is None (the predicted class), a class's index or name, (B,) of them, or a callable on the logits; "
        f"got {type(target).__name__}"
    )


def _from_tensor(target: Tensor) -> Target:
    if target.is_floating_point() or target.dtype == torch.bool or target.ndim > 1:
        raise WhycamError(
            f"a target tensor holds one class index per image, (B,) of whole numbers; got {target.dtype} "
            f"of shape {tuple(target.shape)}"
        )
    return ClassScore(int(target) if target.ndim == 0 else without_inference_tensors(target.long()))


def _from_list(target: Sequence[Any], classes: ClassNames | None) -> Target:
    index = (classes or ClassNames({})).index
    members = [_plain(member, index) for member in target]
    if all(isinstance(member, int) and not isinstance(member, bool) for member in members):
        return ClassScore(torch.tensor(members, dtype=torch.long))
    return _PerImage(tuple(resolve_target(member, classes) for member in members))


def _from_callable(target: Any, index: Callable[[str], int]) -> Target:
    if isinstance(target, type):
        raise WhycamError(f"a target is made of {target.__name__}, not {target.__name__} itself: {target.__name__}(…)")
    named = getattr(target, "named", None)
    return _without_inference_tensors(target if named is None else named(index))


def _without_inference_tensors(target: Any) -> Target:
    """The same with copies of the tensors in its fields that were made under ``inference_mode``."""
    found: Target = target
    if not is_dataclass(target):
        return found
    values = {field.name: getattr(target, field.name) for field in fields(target) if field.init}
    changes = {
        name: changed for name, value in values.items() if (changed := without_inference_tensors(value)) is not value
    }
    if changes:
        # A dataclass it is, as was asked above; to the type checker it may be a class as well.
        found = replace(target, **changes)  # type: ignore[assignment,type-var]
    return found


def retargeted(target: Target, change: Callable[[Target], Target]) -> Target:
    """What a method makes of a target; of a list of targets, of each of them."""
    if isinstance(target, _PerImage):
        return _PerImage(tuple(change(member) for member in target.members))
    return change(target)


@dataclass(frozen=True)
class _PerImage:
    """A list of targets, one per image."""

    members: tuple[Target, ...]

    @property
    def wants_output(self) -> bool:
        """Where one of them does; the others are shown the leading tensor all the same."""
        return any(map(wants_output, self.members))

    def __call__(self, shown: Any) -> Tensor:
        return torch.cat([scores_of(member, *answer) for member, answer in self._answers(shown)])

    def at(self, rows: Tensor) -> _PerImage:
        return _PerImage(tuple(self.members[row] for row in rows.tolist()))

    def freeze(self, shown: Any) -> _PerImage:
        return _PerImage(tuple(freeze(member, *answer) for member, answer in self._answers(shown)))

    def _answers(self, shown: Any) -> list[tuple[Target, tuple[Tensor, Any]]]:
        """Each member with its own image's logits and output."""
        count, found = len(self.members), []
        for place, member in enumerate(self.members):
            row = torch.tensor([place])
            part = rows_of(shown, count, row) if self.wants_output else shown[place : place + 1]
            logits = leading(part, 1)
            found.append((member, (torch.zeros(1, 0) if logits is None else logits, part)))
        return found


@dataclass(frozen=True)
class _Copies:
    """A target that knows the whole batch only, of several copies of it."""

    target: Target
    images: int
    copies: int

    @property
    def wants_output(self) -> bool:
        return wants_output(self.target)

    def __call__(self, shown: Any) -> Tensor:
        if not self.wants_output:
            return torch.cat([scores_of(self.target, part) for part in shown.chunk(self.copies)])
        rows = torch.arange(self.images * self.copies)
        parts = [rows_of(shown, len(rows), chosen) for chosen in rows.chunk(self.copies)]
        return torch.cat([scores_of(self.target, torch.zeros(self.images, 0), part) for part in parts])


def _check_count(target: Target, logits: Tensor) -> None:
    if isinstance(target, _PerImage) and len(target.members) != len(logits):
        raise WhycamError(f"{len(target.members)} targets are given for {len(logits)} images; give one each")


def _plain(member: Any, index: Callable[[str], int]) -> Any:
    if isinstance(member, Tensor | np.ndarray | np.generic) and member.ndim == 0:
        member = member.item()
    return numbered(member, index) if isinstance(member, str) else member


def _name(target: Target) -> str:
    if isinstance(target, _Copies):
        return _name(target.target)
    return getattr(target, "__name__", type(target).__name__)
