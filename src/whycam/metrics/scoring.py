"""Scores of a classifier on altered images: the numbers that every perturbation metric compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.errors import WhycamError, check_batch_size
from whycam.metrics.checks import check_images
from whycam.nn_utils import first_tensor, in_eval_mode

ScoreFunction = Callable[[Tensor], Tensor]
Preprocessing = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class ClassScorer:
    """Scores altered images for the class of the image that each was made from. Make one with `create`.

    Attributes:
        model: maps (n, C, H, W) to (n, K) logits, and the score is the class's softmax probability; or to (n,) scores.
        classes: (B,) the class of each original image; None if ``model`` returns scores.
        preprocess: turns images in [0, 1] into network input; None passes them on unchanged.
        batch_size: images in one forward pass.
    """

    model: nn.Module | ScoreFunction
    classes: Tensor | None
    preprocess: Preprocessing | None
    batch_size: int

    @classmethod
    def create(
        cls,
        model: nn.Module | ScoreFunction,
        images: Tensor,
        classes: Classes,
        preprocess: Preprocessing | None,
        batch_size: int,
    ) -> ClassScorer:
        """Check the arguments and make a scorer.

        Args:
            model: as in the attributes; a module runs in evaluation mode and keeps its own mode afterwards.
            images: (B, C, H, W) in [0, 1], the original images.
            classes: one class for all images, or one for each; None if ``model`` returns scores.
            preprocess: as in the attributes.
            batch_size: as in the attributes.

        Raises:
            WhycamError: the images are not floats in [0, 1], the batch size is below 1, or the number of classes is
                not the number of images.
        """
        check_images(images)
        check_batch_size(batch_size)
        if classes is not None:
            classes = torch.as_tensor(classes, device=images.device).long()
            classes = classes.expand(len(images)) if classes.ndim == 0 else classes
            if classes.shape != (len(images),):
                raise WhycamError(
                    f"{len(classes)} targets for {len(images)} images: give one class, or one for each image"
                )
        return cls(model, classes, preprocess, batch_size)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Put the model in evaluation mode and switch gradients off; call `scores` inside this context."""
        with in_eval_mode(self.model) if isinstance(self.model, nn.Module) else nullcontext(), torch.no_grad():
            yield

    def scores(self, altered: Tensor, rows: Tensor) -> Tensor:
        """Score altered images.

        Args:
            altered: (n, C, H, W) in [0, 1].
            rows: (n,) the index of the original image that each was made from.

        Returns:
            (n,) float32.

        Raises:
            WhycamError: the model's output has another shape, is not finite, or lacks the class.
        """
        batches = [
            self._batch_scores(altered[start : start + self.batch_size], rows[start : start + self.batch_size])
            for start in range(0, len(altered), self.batch_size)
        ]
        return torch.cat(batches) if batches else altered.new_zeros(0, dtype=torch.float32)

    def _batch_scores(self, altered: Tensor, rows: Tensor) -> Tensor:
        output = self._output(altered)
        if self.classes is None:
            return output.float()
        classes = output.shape[1]
        if classes == 1:
            raise WhycamError(
                "the model returns a single logit, and the softmax of one logit is always 1: give a function that "
                "returns a score (its sigmoid, for example), and no targets"
            )
        wanted = self.classes[rows.to(self.classes.device)]
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < classes:
            raise WhycamError(f"targets must be classes from 0 to {classes - 1}, got {sorted(set(wanted.tolist()))}")
        return output.float().softmax(dim=1).gather(1, wanted[:, None])[:, 0]

    def _output(self, altered: Tensor) -> Tensor:
        """The model's (n, K) logits, or (n,) scores where there are no classes."""
        output = first_tensor(self.model(altered if self.preprocess is None else self.preprocess(altered)))
        shape = None if output is None else tuple(output.shape)
        axes = 1 if self.classes is None else 2
        if output is None or output.ndim != axes or len(output) != len(altered):
            expected = (
                "one score per image (to score a class, give targets)" if self.classes is None else "(n, K) logits"
            )
            raise WhycamError(f"the model answered {len(altered)} images with {shape}, expected {expected}")
        if not bool(output.isfinite().all()):
            raise WhycamError("the model's output for an altered image is NaN or infinite")
        return output
