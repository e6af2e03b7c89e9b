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

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from whycam.errors import WhycamError

Target = Callable[[Tensor], Tensor]
Index = int | str | Sequence[int] | Sequence[str] | Tensor | np.ndarray[Any, Any]
TargetLike = Target | Index | Sequence[Any] | None


class Named:
    """For dataclasses with fields that may hold class names."""

    def named(self, index: Callable[[str], int]) -> Self:
        """The same with names looked up."""
        # The dataclasses are those that inherit this, which the type checker cannot know here.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changes = {name: numbered(value, index) for name, value in values.items() if _has_names(value)}
        return replace(self, **changes) if changes else self  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ClassScore(Named):
    """The logit of one class: an index or a name for all images, or (B,), one per image."""

    index: Index

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, self.index)

    def at(self, rows: Tensor) -> ClassScore:
        """The same for the images at ``rows`` (n,)."""
        return type(self)(_at(self.index, rows))


class Probability(ClassScore):
    """The softmax probability of one class; saturates, so a confident prediction has nearly no gradient."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits.softmax(dim=1), self.index)


class LogProbability(ClassScore):
    """The log-softmax of one class."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits.log_softmax(dim=1), self.index)


class ReST(ClassScore):
    """The residual-softmax target y_c + log p_c (Cai, 2025, arXiv:2501.06261): the logit, and how alone it stands."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits + logits.log_softmax(dim=1), self.index)


@dataclass(frozen=True, eq=False)
class Margin(Named):
    """Why ``a`` rather than ``b``: the difference of two logits."""

    a: Index
    b: Index

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, self.a) - _pick(logits, self.b)

    def at(self, rows: Tensor) -> Margin:
        """The same for the images at ``rows`` (n,)."""
        return Margin(_at(self.a, rows), _at(self.b, rows))


class Predicted:
    """The logit of whichever class the network predicts for each image."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        return _pick(logits, _predicted(logits))  # amax would share the gradient among equal logits

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
        count: Any = self.count
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < 1:
            raise WhycamError(f"count of Finer is a whole number of at least 1, not {count!r}")

    def freeze(self, logits: Tensor) -> Finer:
        """With the class and its similar ones as they are now."""
        index = _predicted(logits) if self.index is None else _indices(logits, self.index)
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
        return _pick(logits, frozen.index) - self.alpha * logits.gather(1, frozen.similar.to(logits.device)).mean(dim=1)

    def at(self, rows: Tensor) -> Finer:
        """The same for the images at ``rows`` (n,)."""
        index = None if self.index is None else _at(self.index, rows)
        return Finer(index, self.alpha, self.count, None if self.similar is None else _at(self.similar, rows))


@dataclass(frozen=True, eq=False)
class Output:
    """One output of a network for regression or several labels; ``index`` may be left out for (B,) and (B, 1)."""

    index: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        """(B,) or (B, K) → (B,)."""
        if output.ndim == 1:
            _indices(output[:, None], self.index)  # says so where it is not the only one
            return output
        return _pick(output, self.index)

    def at(self, _rows: Tensor) -> Output:
        """The same: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Binary:
    """A single logit's verdict: the logit for the positive class, minus the logit for the negative one."""

    positive: bool = True

    def __call__(self, output: Tensor) -> Tensor:
        """(B,) or (B, 1) → (B,)."""
        if output.shape[1:] not in ((), (1,)):
            raise WhycamError(
                f"Binary explains a single logit, (B,) or (B, 1), and the model gives {tuple(output.shape)}: give a "
                "class's index or name instead, or whycam.Output(k)"
                + (" (whycam.Segmentation for an output with positions)" if output.ndim == 4 else "")
            )
        logit = output.reshape(len(output))
        return logit if self.positive else -logit

    def at(self, _rows: Tensor) -> Binary:
        """The same: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarity of the network's output to an embedding, (D,) for all images or (B, D)."""

    embedding: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding", _one_or_each(self.embedding, 1))

    def __call__(self, output: Tensor) -> Tensor:
        """(B, D) → (B,)."""
        shape = self.embedding.shape
        if output.ndim != 2 or shape not in (output.shape[1:], output.shape):
            raise WhycamError(
                f"an embedding is (D,) or (B, D) as the network's output is; it is {tuple(shape)}, the "
                f"output {tuple(output.shape)}"
            )
        return torch.nn.functional.cosine_similarity(output, self.embedding.to(output), dim=-1)

    def at(self, rows: Tensor) -> Similarity:
        """The same for the images at ``rows`` (n,)."""
        return self if self.embedding.ndim == 1 else Similarity(_at(self.embedding, rows))


@dataclass(frozen=True, eq=False)
class Segmentation(Named):
    """The score of a class summed over a region of a segmentation network's output.

    Attributes:
        index: the class.
        mask: (H, W) for all images or (B, H, W), at the output's resolution; weights or booleans; None for everywhere.
    """

    index: int | str
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        index: Any = self.index
        if not isinstance(index, str):
            try:
                whole = None if isinstance(index, bool) else operator.index(index)
            except TypeError:
                whole = None
            if whole is None:
                raise WhycamError(
                    f"Segmentation explains one class, given by its index or name, not {index!r}; for a class of its "
                    "own for each image give a list of targets"
                )
            object.__setattr__(self, "index", whole)
        if self.mask is not None:
            object.__setattr__(self, "mask", _one_or_each(self.mask, 2))

    def __call__(self, output: Tensor) -> Tensor:
        """(B, K, H, W) → (B,)."""
        if output.ndim != 4:
            raise WhycamError(f"a segmentation target needs (B, K, H, W) outputs, got {tuple(output.shape)}")
        index = _number(self.index)
        if not 0 <= index < output.shape[1]:
            raise WhycamError(f"target class {index} does not exist; this model has 0 to {output.shape[1] - 1}")
        score = output[:, index]
        if self.mask is not None:
            shape = self.mask.shape
            if shape[-2:] != score.shape[1:]:
                raise WhycamError(
                    f"the mask is {tuple(shape)}, the network's output {tuple(score.shape[1:])}: resize one"
                )
            if shape not in (score.shape, score.shape[1:]):
                raise WhycamError(
                    f"the mask is {tuple(shape)} for {len(score)} images: give one (H, W) for all, or one per image"
                )
            score = score * self.mask.to(score)
        return score.sum(dim=(1, 2))

    def at(self, rows: Tensor) -> Segmentation:
        """The same for the images at ``rows`` (n,)."""
        per_image = self.mask is not None and self.mask.ndim == 3
        return Segmentation(self.index, _at(self.mask, rows)) if per_image and self.mask is not None else self

    def mirrored(self, _width: int) -> Segmentation:
        """The same region of the mirrored images."""
        return self if self.mask is None else Segmentation(self.index, self.mask.flip(-1))


@dataclass(frozen=True, eq=False)
class WholeOutput:
    """A function of everything the network returns, for models whose answer is no single tensor.

    Attributes:
        function: what the network returned for n images → (n,) scores. It treats all images alike; where they differ,
            give one target per image, or write a target with ``wants_output = True`` and ``at``.
    """

    function: Callable[[Any], Tensor]
    wants_output = True

    def __call__(self, output: Any) -> Tensor:
        """Whatever the network returns for n images → (n,)."""
        return self.function(output)

    def at(self, _rows: Tensor) -> WholeOutput:
        """The same: it does not depend on the image."""
        return self


def _predicted(logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise WhycamError(
            f"the model's output is {tuple(logits.shape)}, which predicts no class: give a target, whycam.Output() say"
        )
    return logits.argmax(dim=1)


def _pick(logits: Tensor, index: Index) -> Tensor:
    return logits.gather(1, _indices(logits, index)[:, None])[:, 0]


def _indices(logits: Tensor, index: Index) -> Tensor:
    """(B,) class indices, checked."""
    if logits.ndim != 2:
        raise WhycamError(f"a class target needs (B, K) logits, the model gives {tuple(logits.shape)}")
    images, classes = logits.shape
    indices = torch.as_tensor(_number(index), device=logits.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool or indices.ndim > 1:
        raise WhycamError(f"a target class is a whole number, one for all images or (B,) of them; got {index!r}")
    if indices.ndim and len(indices) != images:
        raise WhycamError(f"{len(indices)} target classes are given for {images} images; give one, or one per image")
    lowest, highest = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise WhycamError(f"target class {wrong} does not exist; this model has classes 0 to {classes - 1}")
    return indices.long().expand(images)


def numbered(value: Any, index: Callable[[str], int]) -> Any:
    """A class name's index; likewise for all names in a nested list, which keeps everything else."""
    if isinstance(value, str):
        return index(value)
    return [numbered(member, index) for member in value] if isinstance(value, list | tuple) else value


def _has_names(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(_has_names, value)))


def _number(index: Any) -> Any:
    if _has_names(index):
        raise WhycamError(f"{index!r} is a class name: whycam.explain looks it up, here an index is needed")
    return index


def _one_or_each(value: Any, axes: int) -> Tensor:
    """As a tensor; what has a batch axis before its ``axes`` of length 1 is the one for all images, and loses it."""
    tensor = torch.as_tensor(value)
    return tensor[0] if tensor.ndim == axes + 1 and len(tensor) == 1 else tensor


def _at(value: Any, rows: Tensor) -> Any:
    """One value for all images stays; of one per image, those at ``rows``."""
    if isinstance(value, list | tuple | np.ndarray):
        value = torch.as_tensor(np.asarray(value))
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
