"""Targets for networks that return no class scores, but a number, an embedding, a mask or anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whycam.cam.targets.classification import Named
from whycam.cam.targets.indices import at_rows, indices_of, pick, require_indices, whole_number, without_unit_batch
from whycam.errors import WhycamError


@dataclass(frozen=True, eq=False)
class Output:
    """One output of a network for regression or multi-label tasks; for (B,) and (B, 1) ``index`` may be left out."""

    index: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        """(B,) or (B, K) → (B,)."""
        if output.ndim == 1:
            indices_of(output[:, None], self.index)  # raises unless the index is 0
            return output
        return pick(output, self.index)

    def at(self, _rows: Tensor) -> Output:
        """The same target: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Binary:
    """A class of a binary classifier with one logit: the logit for the positive class, −logit for the negative one."""

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
        """The same target: it does not depend on the image."""
        return self


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarity of the network's output and an embedding, (D,) for all images or (B, D)."""

    embedding: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding", without_unit_batch(self.embedding, 1))

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
        return self if self.embedding.ndim == 1 else Similarity(at_rows(self.embedding, rows))


@dataclass(frozen=True, eq=False)
class Segmentation(Named):
    """The score of a class summed over a region of a segmentation network's output.

    Attributes:
        index: the class.
        mask: (H, W) for all images or (B, H, W), at the output's resolution; weights or booleans; None for all of it.
    """

    index: int | str
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.index, str):
            if (whole := whole_number(self.index)) is None:
                raise WhycamError(
                    f"Segmentation explains one class, given by its index or name, not {self.index!r}; for a class of "
                    "its own for each image give a list of targets"
                )
            object.__setattr__(self, "index", whole)
        if self.mask is not None:
            object.__setattr__(self, "mask", without_unit_batch(self.mask, 2))

    def __call__(self, output: Tensor) -> Tensor:
        """(B, K, H, W) → (B,)."""
        if output.ndim != 4:
            raise WhycamError(f"a segmentation target needs (B, K, H, W) outputs, got {tuple(output.shape)}")
        index = require_indices(self.index)
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
        return Segmentation(self.index, at_rows(self.mask, rows)) if per_image and self.mask is not None else self

    def mirrored(self, _width: int) -> Segmentation:
        """The same region of the mirrored images."""
        return self if self.mask is None else Segmentation(self.index, self.mask.flip(-1))


@dataclass(frozen=True, eq=False)
class WholeOutput:
    """A function of everything that the network returns, for models that do not return a single tensor.

    Attributes:
        function: the network's output for n images → (n,) scores. It treats all images alike. If the score differs
            between images, give one target per image, or write a target with ``wants_output = True`` and ``at``.
    """

    function: Callable[[Any], Tensor]
    wants_output = True

    def __call__(self, output: Any) -> Tensor:
        """The network's output for n images → (n,)."""
        return self.function(output)

    def at(self, _rows: Tensor) -> WholeOutput:
        """The same target: it does not depend on the image."""
        return self
