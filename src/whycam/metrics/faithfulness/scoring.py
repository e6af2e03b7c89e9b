"""What a network answers to altered images: the score that all perturbation metrics watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.maps import finite
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor, in_eval_mode

ScoreFunction = Callable[[Tensor], Tensor]
Preprocessing = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Question:
    """How likely is each image's class, now that the image has been altered?

    Attributes:
        model: (n, C, H, W) → (n, K) logits, of which a class's softmax probability is the score; or (n,) scores.
        classes: (B,) the class of each original; None where ``model`` gives scores.
        preprocess: makes network input of images in [0, 1]; None feeds them as they are.
        batch_size: images at a time.
    """

    model: nn.Module | ScoreFunction
    classes: Tensor | None
    preprocess: Preprocessing | None
    batch_size: int

    @classmethod
    def about(
        cls,
        model: nn.Module | ScoreFunction,
        images: Tensor,
        classes: Classes,
        preprocess: Preprocessing | None,
        batch_size: int,
    ) -> Question:
        """Check what is asked.

        Args:
            model: see above; a module is asked in evaluation mode and left as it was.
            images: (B, C, H, W) in [0, 1], the originals.
            classes: one for all, or one an image; None where ``model`` gives scores.
            preprocess: see above.
            batch_size: see above.

        Raises:
            WhycamError: the images are no floats in [0, 1], or their number is not that of the classes.
        """
        check_images(images)
        if batch_size < 1:
            raise WhycamError(f"batch_size must be at least 1, got {batch_size}")
        if classes is not None:
            classes = torch.as_tensor(classes, device=images.device).long()
            classes = classes.expand(len(images)) if classes.ndim == 0 else classes
            if classes.shape != (len(images),):
                raise WhycamError(
                    f"{len(classes)} targets for {len(images)} images: give one class, or one for each image"
                )
        return cls(model, classes, preprocess, batch_size)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Answers are given inside this: in evaluation mode, without gradients."""
        with in_eval_mode(self.model) if isinstance(self.model, nn.Module) else nullcontext(), torch.no_grad():
            yield

    def scores(self, altered: Tensor, rows: Tensor) -> Tensor:
        """The score of altered images.

        Args:
            altered: (n, C, H, W) in [0, 1].
            rows: (n,) which original each was made of.

        Returns:
            (n,) float32.

        Raises:
            WhycamError: the model's answer fits neither form, is not finite, or has no such class.
        """
        found = [
            self._answer(altered[start : start + self.batch_size], rows[start : start + self.batch_size])
            for start in range(0, len(altered), self.batch_size)
        ]
        return torch.cat(found) if found else altered.new_zeros(0, dtype=torch.float32)

    def _answer(self, altered: Tensor, rows: Tensor) -> Tensor:
        answer = self.model(altered if self.preprocess is None else self.preprocess(altered))
        output = first_tensor(answer)
        shape = None if output is None else tuple(output.shape)
        expected_axes = 1 if self.classes is None else 2
        if output is None or shape is None or len(shape) != expected_axes or shape[0] != len(altered):
            expected = (
                "one score an image; with classes to watch, give targets" if self.classes is None else "(n, K) logits"
            )
            raise WhycamError(f"the model answered {len(altered)} images with {shape}, expected {expected}")
        if not bool(output.isfinite().all()):
            raise WhycamError("the model's answer to an altered image is NaN or infinite")
        if self.classes is None:
            return output.float()
        if output.shape[1] == 1:
            raise WhycamError(
                "the model answers with a single logit, whose softmax is 1 whatever it is shown: give a function that "
                "makes a score of it (its sigmoid, say), and no targets"
            )
        wanted = self.classes[rows.to(self.classes.device)]
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < output.shape[1]:
            raise WhycamError(
                f"targets must be classes from 0 to {output.shape[1] - 1}, got {sorted(set(wanted.tolist()))}"
            )
        return output.float().softmax(dim=1).gather(1, wanted[:, None])[:, 0]


def check_images(images: Tensor) -> None:
    """Refuse what are no images before normalization.

    Raises:
        WhycamError: not (B, C, H, W) floats in [0, 1].
    """
    if images.ndim != 4:
        raise WhycamError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 1.0)
    if not images.is_floating_point() or not (low >= 0 and high <= 1):  # also true of NaN
        raise WhycamError(
            f"images must be floats in [0, 1], got {str(images.dtype).removeprefix('torch.')} from {low:g} to "
            f"{high:g}: pixels are altered before they are normalized, so give normalization as preprocess"
        )


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Refuse what are no maps of these images.

    Raises:
        WhycamError: not (B, h, w), one for each image, or not finite.
    """
    if maps.ndim != 3 or len(images) != len(maps):
        raise WhycamError(
            "images must be (B, C, H, W) and maps (B, h, w), one for each image, got "
            f"{tuple(images.shape)} and {tuple(maps.shape)}"
        )
    broken = ~finite(maps)
    if bool(broken.any()):
        raise WhycamError(f"map {int(broken.int().argmax())} holds NaN or infinity: its pixels have no order")
