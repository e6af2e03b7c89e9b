"""grad-cam's convention for targets: a list with one per image; each gets its own image's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, first_tensor

ImageTarget = Callable[[Any], Tensor]
Choice = Callable[[Tensor], Sequence[ImageTarget]]


def predicted(logits: Tensor) -> list[ImageTarget]:
    """Each image's class with the largest logit.

    Raises:
        WhycamError: the output is not (B, K).
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise WhycamError(
            f"targets=None explains the predicted class and needs a model that returns (B, K) logits; this one returns "
            f"{tuple(logits.shape)}: give one target per image"
        )
    return [ClassifierOutputTarget(index) for index in logits.argmax(dim=-1).tolist()]


class ImageTargets:
    """A whycam target, which turns a batch's output into (B,) scores, made of one grad-cam target per image.

    Args:
        members: one callable per image; None leaves the choice to ``choose``.
        choose: finds them from the logits (B, K).
    """

    def __init__(self, members: Sequence[ImageTarget] | None, choose: Choice = predicted) -> None:
        self.members = None if members is None else tuple(members)
        self.choose = choose
        self.wants_output = True
        self.output: Any = None
        """What the network returned in the last call."""

    def freeze(self, output: Any) -> ImageTargets:
        """A copy with the members chosen; it reads logits if the model returns logits, else the whole output.

        Raises:
            WhycamError: members must be chosen and the model returns no logits.
        """
        rows = per_image(output)
        members = self._chosen(rows, output)
        frozen = ImageTargets(members, self.choose)
        frozen.wants_output = not isinstance(rows, Tensor) or len(rows) != len(members)
        return frozen

    def _chosen(self, rows: Any, output: Any) -> tuple[ImageTarget, ...]:
        if self.members is not None:
            return self.members
        if not isinstance(rows, Tensor):
            raise WhycamError(f"targets=None needs (B, K) logits, the model returns a {type(output).__name__}")
        return tuple(self.choose(rows.detach()))

    def at(self, rows: Tensor) -> ImageTargets:
        """The same for the images at ``rows`` (n,)."""
        assert self.members is not None  # frozen before anything runs again
        chosen = ImageTargets([self.members[row] for row in rows.tolist()])
        chosen.wants_output = self.wants_output
        return chosen

    def __call__(self, output: Any) -> Tensor:
        """The scores (B,).

        Raises:
            WhycamError: there are not as many targets as images, or a target does not return one number.
        """
        rows = per_image(output)
        members = self._chosen(rows, output)
        check_count(members, rows)
        self.output = rows.detach() if isinstance(rows, Tensor) else rows
        if isinstance(rows, Tensor) and rows.ndim == 2 and (classes := class_indices(members)) is not None:
            places = torch.arange(len(rows), device=rows.device)
            return rows[places, torch.tensor(classes, dtype=torch.long, device=rows.device)]
        return torch.stack([_number(target, row) for target, row in zip(members, rows, strict=True)])


def check_count(targets: Sized, images: Sized) -> None:
    """Check that there is one target per image.

    Raises:
        WhycamError: there are more or fewer.
    """
    if len(targets) != len(images):
        raise WhycamError(f"{len(targets)} targets are given for {len(images)} images; give one each")


def class_indices(members: Sequence[ImageTarget]) -> list[int] | None:
    """The targets' classes; None unless all are plain class targets."""
    found = []
    for target in members:
        if type(target) is not ClassifierOutputTarget or not isinstance(target.category, int | np.integer):
            return None
        found.append(int(target.category))
    return found


def per_image(output: Any) -> Any:
    """A network's output, indexed by image: (B, …) logits, or a detector's list of B mappings."""
    if isinstance(output, list | tuple) and output and all(isinstance(entry, Mapping) for entry in output):
        return output
    logits = first_tensor(output)
    if logits is None or logits.ndim == 0:
        raise WhycamError(f"the model returns {type(output).__name__} without a tensor (B, …) to explain")
    return at_least_float32(logits)


def _number(target: ImageTarget, row: Any) -> Tensor:
    value = target(row)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        name = getattr(target, "__name__", type(target).__name__)
        raise WhycamError(f"target {name} must return one number per image to be explained; it returned {got}")
    return value.reshape(())
