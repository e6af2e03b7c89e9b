"""Resolve shorthands into targets, freeze targets, and compute and check their scores, also for perturbed images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.cam.targets.class_names import ClassNames
from whycam.cam.targets.classification import ClassScore, Predicted, Target, TargetLike
from whycam.cam.targets.indices import names_to_indices
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, first_tensor, is_per_image, rows_of, without_inference_tensors


def wants_output(target: Target) -> bool:
    """Whether the target is called with everything that the network returns instead of its leading tensor."""
    return bool(getattr(target, "wants_output", False))


def leading(output: object, images: int) -> Tensor | None:
    """The leading tensor of a network's output, usually (B, K) logits; None if its first axis is not the batch.

    At least float32, because half-precision logits would make scores too coarse to differentiate well.
    """
    logits = None if is_per_image(output, images) else first_tensor(output)
    if logits is None or logits.ndim == 0 or len(logits) != images:
        return None
    return at_least_float32(logits)


def freeze(target: Target, logits: Tensor, output: object) -> Target:
    """``target`` with all values fixed that depend on the network's output for the unperturbed images."""
    _check_count(target, logits)
    freeze_method: Callable[[Any], Target] | None = getattr(target, "freeze", None)
    if freeze_method is None:
        return target
    with torch.no_grad():
        return freeze_method(output if wants_output(target) else logits.detach())


def scores_of(target: Target, logits: Tensor, output: object = None) -> Tensor:
    """Call a target and check that it returns one score per image.

    Args:
        target: any target.
        logits: (n, K), or (n, 0) if the network returns no leading tensor.
        output: the network's output, for targets that want it.

    Raises:
        WhycamError: it returned something else.
    """
    _check_count(target, logits)
    argument: Any = output if wants_output(target) else logits
    scores = target(argument)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise WhycamError(
            f"target {_name(target)} must return one score per image, shape ({len(logits)},); it returned {got}"
        )
    return scores


def score_rows(target: Target, logits: Tensor, rows: Tensor, original: Tensor, output: object = None) -> Tensor:
    """The target's scores for perturbed images.

    Args:
        target: frozen.
        logits: (n, K) logits of the perturbed images.
        rows: (n,) for each perturbed image, the index of its image in the batch.
        original: (B, K) logits of the unperturbed images.
        output: the network's output for the perturbed images, for targets that want it.

    Returns:
        (n,) scores.

    Raises:
        WhycamError: the target wants the whole output and has no ``at``, so it cannot score some of the images.
    """
    at = getattr(target, "at", None)
    if at is not None:
        return scores_of(at(rows.to(logits.device)), logits, output)
    if wants_output(target):
        raise WhycamError(
            f"target {_name(target)} reads the network's whole output and has no at(rows), so it cannot score "
            "perturbed images; give it one, or write it as whycam.WholeOutput(function)"
        )
    # The user's callable accepts the whole batch only, so each perturbed image replaces its own image in the batch.
    # Several perturbed images of one image need several calls.
    scores = logits.new_empty(len(rows))
    remaining = list(range(len(rows)))
    images = rows.tolist()
    while remaining:
        replaced: dict[int, int] = {}  # index of the image in the batch → position among the perturbed images
        for position in remaining:
            replaced.setdefault(images[position], position)
        chosen = list(replaced.values())
        batch = original.clone()
        batch[list(replaced)] = logits[chosen]
        scores[chosen] = scores_of(target, batch)[list(replaced)]
        done = set(chosen)
        remaining = [position for position in remaining if position not in done]
    return scores


def repeat_target(target: Target, images: int, rows: Tensor) -> Target:
    """The target for concatenated copies of a batch, so that each copy is scored as the batch is.

    Args:
        target: frozen.
        images: number of images in the batch.
        rows: (n,) for each copied image, the index of its image in the batch.
    """
    at: Callable[[Tensor], Target] | None = getattr(target, "at", None)
    if at is not None:
        return at(rows)
    copies = len(rows) // images
    return target if copies == 1 else _Copies(target, images, copies)


def mirrored(target: Target, logits: Tensor, width: int) -> Target:
    """The target for the mirrored images.

    Args:
        target: frozen.
        logits: of the unperturbed images; (B, K) logits have no positions, so no target on them has to be mirrored.
        width: of the images, in pixels.

    Raises:
        WhycamError: the target may depend on positions and has no ``mirrored``.
    """
    mirror: Callable[[int], Target] | None = getattr(target, "mirrored", None)
    if mirror is not None:
        return mirror(width)
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
        classes: names of the classes.

    Raises:
        WhycamError: one has none of these forms, or names an unknown class.
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
        return ClassScore(names_to_indices(target, index))
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
    """The same target with copies of the tensors in its fields that were made under ``inference_mode``."""
    result: Target = target
    if not is_dataclass(target):
        return result
    values = {field.name: getattr(target, field.name) for field in fields(target) if field.init}
    changes = {
        name: changed for name, value in values.items() if (changed := without_inference_tensors(value)) is not value
    }
    if changes:
        # An instance of a dataclass; for the type checker it could be a dataclass itself.
        result = replace(target, **changes)  # type: ignore[assignment,type-var]
    return result


def retargeted(target: Target, change: Callable[[Target], Target]) -> Target:
    """Apply a method's ``retarget`` function to a target, or to each of a list of targets."""
    if isinstance(target, _PerImage):
        return _PerImage(tuple(change(member) for member in target.members))
    return change(target)


@dataclass(frozen=True)
class _PerImage:
    """A list of targets, one per image."""

    members: tuple[Target, ...]

    @property
    def wants_output(self) -> bool:
        """Whether a member does; the other members are still called with the leading tensor."""
        return any(map(wants_output, self.members))

    def __call__(self, output: Any) -> Tensor:
        return torch.cat([scores_of(member, *parts) for member, parts in self._parts(output)])

    def at(self, rows: Tensor) -> _PerImage:
        return _PerImage(tuple(self.members[row] for row in rows.tolist()))

    def freeze(self, output: Any) -> _PerImage:
        return _PerImage(tuple(freeze(member, *parts) for member, parts in self._parts(output)))

    def _parts(self, output: Any) -> list[tuple[Target, tuple[Tensor, Any]]]:
        """Each member with the logits and the output of its own image."""
        count, parts = len(self.members), []
        for index, member in enumerate(self.members):
            row = torch.tensor([index])
            part = rows_of(output, count, row) if self.wants_output else output[index : index + 1]
            logits = leading(part, 1)
            parts.append((member, (torch.zeros(1, 0) if logits is None else logits, part)))
        return parts


@dataclass(frozen=True)
class _Copies:
    """A target without ``at``, for several concatenated copies of its batch."""

    target: Target
    images: int
    copies: int

    @property
    def wants_output(self) -> bool:
        return wants_output(self.target)

    def __call__(self, output: Any) -> Tensor:
        if not self.wants_output:
            return torch.cat([scores_of(self.target, part) for part in output.chunk(self.copies)])
        rows = torch.arange(self.images * self.copies)
        parts = [rows_of(output, len(rows), chosen) for chosen in rows.chunk(self.copies)]
        return torch.cat([scores_of(self.target, torch.zeros(self.images, 0), part) for part in parts])


def _check_count(target: Target, logits: Tensor) -> None:
    if isinstance(target, _PerImage) and len(target.members) != len(logits):
        raise WhycamError(f"{len(target.members)} targets are given for {len(logits)} images; give one each")


def _plain(member: Any, index: Callable[[str], int]) -> Any:
    if isinstance(member, Tensor | np.ndarray | np.generic) and member.ndim == 0:
        member = member.item()
    return names_to_indices(member, index) if isinstance(member, str) else member


def _name(target: Target) -> str:
    if isinstance(target, _Copies):
        return _name(target.target)
    return getattr(target, "__name__", type(target).__name__)
