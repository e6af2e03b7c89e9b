"""What is explained: a target turns logits into one score per image.

A target is any callable ``(logits (B, K)) -> scores (B,)`` that is differentiable in the logits and treats images
independently. The classes here are the usual ones; an int, a name, a tensor or ``None`` stands for the simplest of
them. What else a target may have, all of it optional:

* ``wants_output = True``: it is called with everything the network returned instead of its leading tensor.
* ``at(rows)``: the target of the images at ``rows`` (n,) alone, for methods that run altered images again. For a target
  without it those put each altered image in its place among the others, which works for logits only.
* ``freeze(logits)``: the target with everything fixed that it takes from the unaltered images (the predicted class,
  say); without gradients, and with what the target itself is called with.
* ``mirrored(width)``: the target of the mirrored images, ``width`` pixels wide, for one that looks at places; asked for
  by ``augmented`` of targets that want the output and of outputs that are no (B, K) logits.
* ``named(index)``: the target with class names replaced by indices, ``index`` being what looks a name up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from torch import Tensor

from whycam.cam.targets.indices import Index, at_rows, has_names, indices_of, numbered, pick, whole_number
from whycam.errors import WhycamError

Target = Callable[[Tensor], Tensor]
TargetLike = Target | Index | Sequence[Any] | None


class Named:
    """For dataclasses with fields that may hold class names."""

    def named(self, index: Callable[[str], int]) -> Self:
        """The same with names looked up."""
        # The dataclasses are those that inherit this, which the type checker cannot know here.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changes = {name: numbered(value, index) for name, value in values.items() if has_names(value)}
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
    """The softmax probability of one class; saturates, so a confident prediction has nearly no gradient."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits.softmax(dim=1), self.index)


class LogProbability(ClassScore):
    """The log-softmax of one class."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits.log_softmax(dim=1), self.index)


class ReST(ClassScore):
    """The residual-softmax target y_c + log p_c (Cai, 2025, arXiv:2501.06261): the logit, and how alone it stands."""

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
    """The logit of whichever class the network predicts for each image."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return pick(logits, _predicted(logits))  # amax would share the gradient among equal logits

    def freeze(self, logits: Tensor) -> ClassScore:
        """The classes predicted now: what altered images are to be asked about."""
        return ClassScore(_predicted(logits))

    def __repr__(self) -> str:
        return "Predicted()"


@dataclass(frozen=True, eq=False)
class Finer(Named):
    """What tells a class from those most like it (Zhang et al., 2025, arXiv:2501.11309): y_c − alpha · mean(y_similar).

    Attributes:
        index: the class, for all images or one each; None for the predicted one.
        alpha: how much of the similar classes is taken off.
        count: how many similar classes: those with the highest other logits.
        similar: (B, count) their indices; found from the unaltered images' logits where None.
    """

    index: Index | None = None
    alpha: float = 0.6
    count: int = 3
    similar: Tensor | None = None

    def __post_init__(self) -> None:
        if (whole_number(self.count) or 0) < 1:
            raise WhycamError(f"count of Finer is a whole number of at least 1, not {self.count!r}")

    def freeze(self, logits: Tensor) -> Finer:
        """With the class and its similar ones as they are now."""
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
            f"the model's output is {tuple(logits.shape)}, which predicts no class: give a target, whycam.Output() say"
        )
    return logits.argmax(dim=1)
