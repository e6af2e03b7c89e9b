"""Targets for classifiers. A target computes from the logits the score of each image that is explained.

A target is any callable ``(logits (B, K)) -> scores (B,)`` that is differentiable with respect to the logits and treats
images independently. This module has the usual ones; an int, a name, a tensor or ``None`` is short for the simplest. A
target may have more attributes, all of them optional:

* ``wants_output = True``: the target is called with everything that the network returned, not with its leading tensor.
* ``at(rows)``: returns the target for the images at ``rows`` (n,) alone. Methods call it to score perturbed images. For
  a target without it they replace each perturbed image in a full batch, which works for targets that read logits only.
* ``freeze(logits)``: returns the target with all values fixed that depend on the unperturbed images, such as the
  predicted class. It runs without gradients and gets the same argument as a call of the target.
* ``mirrored(width)``: returns the target for mirrored images, ``width`` pixels wide. A target that depends on positions
  needs it: ``augmented`` calls it if the target wants the output, or if the output is not (B, K) logits.
* ``named(index)``: returns the target with class names replaced by indices; ``index`` maps a name to its index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from torch import Tensor

from whycam.cam.targets.indices import Index, at_rows, has_names, indices_of, names_to_indices, pick, whole_number
from whycam.errors import WhycamError

Target = Callable[[Tensor], Tensor]
TargetLike = Target | Index | Sequence[Any] | None


class Named:
    """A base class for dataclasses whose fields may hold class names."""

    def named(self, index: Callable[[str], int]) -> Self:
        """The same target with class names replaced by indices."""
        # Subclasses are dataclasses, which the type checker cannot know here.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changes = {name: names_to_indices(value, index) for name, value in values.items() if has_names(value)}
        return replace(self, **changes) if changes else self  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ClassScore(Named):
    """The logit of one class: an index or a name for all images, or (B,), one per image."""

    index: Index

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits, self.index)

    def at(self, rows: Tensor) -> ClassScore:
        """The same for the images at ``rows`` (n,)."""
        return type(self)(at_rows(self.index, rows))


class Probability(ClassScore):
    """The softmax probability of one class; it saturates, so a confident prediction has nearly no gradient."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits.softmax(dim=1), self.index)


class LogProbability(ClassScore):
    """The log-softmax of one class."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits.log_softmax(dim=1), self.index)


class ReST(ClassScore):
    """The residual-softmax target y_c + log p_c (Cai, 2025, arXiv:2501.06261): the logit plus its log-probability."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits + logits.log_softmax(dim=1), self.index)


@dataclass(frozen=True, eq=False)
class Margin(Named):
    """Why ``a`` rather than ``b``: the difference of two logits."""

    a: Index
    b: Index

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits, self.a) - pick(logits, self.b)

    def at(self, rows: Tensor) -> Margin:
        """The same for the images at ``rows`` (n,)."""
        return Margin(at_rows(self.a, rows), at_rows(self.b, rows))


class Predicted:
    """The logit of the class that the network predicts for each image."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits, _predicted(logits))  # amax would share the gradient among equal logits

    def freeze(self, logits: Tensor) -> ClassScore:
        """The classes that are predicted for these logits, which perturbed images are then scored for."""
        return ClassScore(_predicted(logits))

    def __repr__(self) -> str:
        return "Predicted()"


@dataclass(frozen=True, eq=False)
class Finer(Named):
    """A class minus the most similar ones (Zhang et al., 2025, arXiv:2501.11309): y_c − alpha · mean(y_similar).

    Attributes:
        index: the class, one for all images or one per image; None for the predicted one.
        alpha: weight of the similar classes.
        count: number of similar classes, which are those with the highest other logits.
        similar: (B, count) indices of the similar classes; if None, they are found from the unperturbed images' logits.
    """

    index: Index | None = None
    alpha: float = 0.6
    count: int = 3
    similar: Tensor | None = None

    def __post_init__(self) -> None:
        if (whole_number(self.count) or 0) < 1:
            raise WhycamError(f"count of Finer is a whole number of at least 1, not {self.count!r}")

    def freeze(self, logits: Tensor) -> Finer:
        """The same target with the class and the similar classes fixed for these logits."""
        index = _predicted(logits) if self.index is None else indices_of(logits, self.index)
        if self.similar is not None:
            return Finer(index, self.alpha, self.count, self.similar)
        if logits.shape[1] < 2:
            raise WhycamError("Finer compares a class with those most like it, and this model has one class alone")
        others = logits.detach().scatter(1, index[:, None], float("-inf"))
        return Finer(index, self.alpha, self.count, others.topk(min(self.count, logits.shape[1] - 1), dim=1).indices)

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        frozen = self.freeze(logits) if self.index is None or self.similar is None else self
        assert frozen.index is not None and frozen.similar is not None  # noqa: PT018 (for the type checker)
        return pick(logits, frozen.index) - self.alpha * logits.gather(1, frozen.similar.to(logits.device)).mean(dim=1)

    def at(self, rows: Tensor) -> Finer:
        """The same for the images at ``rows`` (n,)."""
        index = None if self.index is None else at_rows(self.index, rows)
        return Finer(index, self.alpha, self.count, None if self.similar is None else at_rows(self.similar, rows))


def _predicted(logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise WhycamError(
            f"the model's output is {tuple(logits.shape)}, which predicts no class: give a target like whycam.Output()"
        )
    return logits.argmax(dim=1)
