"""What is explained: a target turns logits into one score per image.

A target is any callable ``(logits (B, K)) -> scores (B,)`` that is differentiable in the logits and treats images
independently. The classes here are the usual ones; an int, a tensor or ``None`` stands for the simplest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
class Margin:
    """Why ``a`` rather than ``b``: the difference of two logits."""

    a: int | Tensor
    b: int | Tensor

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
class Finer:
    """What tells a class from those most like it (Zhang et al., 2025, arXiv:2501.11309): y_c − alpha · mean(y_similar).

    Attributes:
        index: the class, for all images or one each; None for the predicted one.
        alpha: how much of the similar classes is taken off.
        count: how many similar classes: those with the highest other logits.
        similar: (B, count) their indices; found from the unaltered images' logits where None.
    """

    index: int | Tensor | None = None
    alpha: float = 0.6
    count: int = 3
    similar: Tensor | None = None

    def freeze(self, logits: Tensor) -> Finer:
        """With the class and its similar ones as they are now."""
        index = _predicted(logits) if self.index is None else _indices(logits, self.index)
        if self.similar is not None:
            return Finer(index, self.alpha, self.count, self.similar)
        others = logits.detach().scatter(1, index[:, None], float("-inf"))
        return Finer(index, self.alpha, self.count, others.topk(min(self.count, logits.shape[1] - 1), dim=1).indices)

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, K) → (B,)."""
        frozen = self.freeze(logits) if self.index is None or self.similar is None else self
        assert frozen.index is not None and frozen.similar is not None  # noqa: PT018 (for the type checker)
        return _pick(logits, frozen.index) - self.alpha * logits.gather(1, frozen.similar).mean(dim=1)

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
        return output if output.ndim == 1 else _pick(output, self.index)

    def at(self, _rows: Tensor) -> Output:
        """The same: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Binary:
    """A single logit's verdict: the logit for the positive class, minus the logit for the negative one."""

    positive: bool = True

    def __call__(self, output: Tensor) -> Tensor:
        """(B,) or (B, 1) → (B,)."""
        logit = output.reshape(len(output), -1)[:, 0]
        return logit if self.positive else -logit

    def at(self, _rows: Tensor) -> Binary:
        """The same: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarity of the network's output to an embedding, (D,) for all images or (B, D)."""

    embedding: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """(B, D) → (B,)."""
        return torch.nn.functional.cosine_similarity(output, self.embedding.to(output), dim=-1)

    def at(self, rows: Tensor) -> Similarity:
        """The same for the images at ``rows`` (n,)."""
        return self if self.embedding.ndim == 1 else Similarity(_at(self.embedding, rows))


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The score of a class summed over a region of a segmentation network's output.

    Attributes:
        index: the class.
        mask: (H, W) for all images or (B, H, W), at the output's resolution; weights or booleans; None for everywhere.
    """

    index: int
    mask: Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """(B, K, H, W) → (B,)."""
        if output.ndim != 4:
            raise WhycamError(f"a segmentation target needs (B, K, H, W) outputs, got {tuple(output.shape)}")
        if not 0 <= self.index < output.shape[1]:
            raise WhycamError(f"target class {self.index} does not exist; this model has 0 to {output.shape[1] - 1}")
        score = output[:, self.index]
        if self.mask is not None:
            if self.mask.shape[-2:] != score.shape[-2:]:
                raise WhycamError(
                    f"the mask is {tuple(self.mask.shape)}, the network's output {tuple(score.shape[-2:])}: resize one"
                )
            score = score * self.mask.to(score)
        return score.sum(dim=(1, 2))

    def at(self, rows: Tensor) -> Segmentation:
        """The same for the images at ``rows`` (n,)."""
        per_image = self.mask is not None and self.mask.ndim == 3
        return Segmentation(self.index, _at(self.mask, rows)) if per_image and self.mask is not None else self


def _predicted(logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise WhycamError(
            f"the model's output is {tuple(logits.shape)}, which predicts no class: give a target, whycam.Output() say"
        )
    return logits.argmax(dim=1)


def _pick(logits: Tensor, index: int | Tensor) -> Tensor:
    return logits.gather(1, _indices(logits, index)[:, None])[:, 0]


def _indices(logits: Tensor, index: int | Tensor) -> Tensor:
    """(B,) class indices, checked."""
    if logits.ndim != 2:
        raise WhycamError(f"a class target needs (B, K) logits, the model gives {tuple(logits.shape)}")
    images, classes = logits.shape
    indices = torch.as_tensor(index, device=logits.device)
    if indices.ndim and len(indices) != images:
        raise WhycamError(f"{len(indices)} target classes are given for {images} images; give one, or one per image")
    lowest, highest = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise WhycamError(f"target class {wrong} does not exist; this model has classes 0 to {classes - 1}")
    return indices.expand(images)


def _at(value: int | Tensor, rows: Tensor) -> Any:
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
