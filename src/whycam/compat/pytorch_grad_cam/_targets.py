"""A list of targets, one per image, each of which is shown its own image's output: grad-cam's convention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor

ImageTarget = Callable[[Any], Tensor]
Choice = Callable[[Tensor], Sequence[ImageTarget]]


def predicted(logits: Tensor) -> list[ImageTarget]:
    """The class with the largest logit of each image.

    Raises:
        WhycamError: there is no such thing for this output.
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise WhycamError(
            f"targets=None explains the predicted class and needs a model that returns (B, K) logits; this one returns "
            f"{tuple(logits.shape)}: give one target per image"
        )
    return [ClassifierOutputTarget(index) for index in logits.argmax(dim=-1).tolist()]


class ImageTargets:
    """A target in this library's sense (a batch in, (B,) scores out) made of grad-cam's targets, one per image.

    Args:
        members: one callable per image; None leaves the choice to ``choose``.
        choose: finds them from the logits (B, K).
    """

    def __init__(self, members: Sequence[ImageTarget] | None, choose: Choice = predicted) -> None:
        self.members = None if members is None else tuple(members)
        self.choose = choose
        self.wants_output = True
        self.output: Any = None
        """What the network returned, once it was called."""

    def freeze(self, output: Any) -> ImageTargets:
        """With the members chosen, and content with logits where the model returns some.

        Raises:
            WhycamError: the model returns no logits to choose them by.
        """
        rows, members = per_image(output), self.members
        if members is None and not isinstance(rows, Tensor):
            raise WhycamError(f"targets=None needs (B, K) logits, the model returns a {type(output).__name__}")
        frozen = ImageTargets(self.choose(rows.detach()) if members is None else members, self.choose)
        assert frozen.members is not None  # just chosen
        frozen.wants_output = not isinstance(rows, Tensor) or len(rows) != len(frozen.members)
        return frozen

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
        members = self.members
        if members is None:
            if not isinstance(rows, Tensor):
                raise WhycamError(f"targets=None needs (B, K) logits, the model returns a {type(output).__name__}")
            members = tuple(self.choose(rows))
        if len(members) != len(rows):
            raise WhycamError(f"{len(members)} targets are given for {len(rows)} images; give one each")
        self.output = rows.detach() if isinstance(rows, Tensor) else rows
        if isinstance(rows, Tensor) and rows.ndim == 2 and (classes := class_indices(members)) is not None:
            return rows[
                torch.arange(len(rows), device=rows.device), torch.tensor(classes, dtype=torch.long, device=rows.device)
            ]
        return torch.stack([_number(target, row) for target, row in zip(members, rows, strict=True)])


def class_indices(members: Sequence[ImageTarget]) -> list[int] | None:
    """The classes where all targets are plain class targets, or None."""
    found = []
    for target in members:
        if type(target) is not ClassifierOutputTarget or not isinstance(target.category, int | np.integer):
            return None
        found.append(int(target.category))
    return found


def per_image(output: Any) -> Any:
    """What of a network's output belongs to which image: (B, …) logits, or a detector's list of B mappings."""
    if isinstance(output, list | tuple) and output and all(isinstance(entry, Mapping) for entry in output):
        return output
    logits = first_tensor(output)
    if logits is None or logits.ndim == 0:
        raise WhycamError(f"the model returns {type(output).__name__} without a tensor (B, …) to explain")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _number(target: ImageTarget, row: Any) -> Tensor:
    value = target(row)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        name = getattr(target, "__name__", type(target).__name__)
        raise WhycamError(f"target {name} must return one number per image to be explained; it returned {got}")
    return value.reshape(())
