"""Detection boxes as a target: how well a detector still reports given boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.cam.targets.indices import numbered
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32


@dataclass(frozen=True)
class Detections:
    """What a detector reports for one image.

    Attributes:
        boxes: (n, 4) as (x1, y1, x2, y2).
        scores: (n,), or (n, K) where every box has a probability of every class.
        labels: (n,); None where ``scores`` is (n, K).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor | None

    def of(self, labels: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """For each label (None: any) every box's score as that, and whether it counts as that: (m, n) both."""
        if self.labels is None:
            whichever = self.scores.amax(dim=1)
            scores = [whichever if label is None else self.scores[:, self._known(label)] for label in labels]
            found = torch.stack(scores) if scores else self.scores.new_zeros(0, len(self.boxes))
            return found, torch.ones_like(found, dtype=torch.bool)
        fits = [torch.ones_like(self.labels).bool() if label is None else self.labels == label for label in labels]
        none = self.labels.new_zeros(0, len(self.boxes)).bool()
        return self.scores.expand(len(labels), -1), torch.stack(fits) if fits else none

    def best(self) -> tuple[Tensor, Tensor]:
        """Every box's label and score, (n,) each."""
        if self.labels is not None:
            return self.labels, self.scores
        scores, labels = self.scores.max(dim=1)
        return labels, scores

    def _known(self, label: int) -> int:
        if not 0 <= label < self.scores.shape[1]:
            raise WhycamError(f"label {label} does not exist; this detector has 0 to {self.scores.shape[1] - 1}")
        return label


def detections(output: object, probabilities: str = "softmax") -> list[Detections]:
    """What a detector returned, image by image; differentiable.

    Args:
        output: a list with a mapping of ``boxes`` (n, 4), ``labels`` and ``scores`` (n,) per image, as torchvision's
            detectors return it; or ``logits`` (B, Q, K) and ``pred_boxes`` (B, Q, 4) as (center x, center y, width,
            height) in fractions of the image, in a mapping or dataclass, as DETR and its kin in transformers do.
        probabilities: of such logits: "softmax", the last class being "no object" (DETR, YOLOS), or "sigmoid"
            (Conditional DETR, Deformable DETR, RT-DETR).

    Raises:
        WhycamError: the output is neither, or there are no such probabilities.
    """
    if probabilities not in ("softmax", "sigmoid"):
        raise WhycamError(f"a detector's probabilities are 'softmax' or 'sigmoid', not {probabilities!r}")
    if isinstance(output, list | tuple) and all(_has(entry, "boxes", "labels", "scores") for entry in output):
        return [Detections(*(_get(entry, name) for name in ("boxes", "scores", "labels"))) for entry in output]
    if not _has(output, "logits", "pred_boxes"):
        raise WhycamError(
            "a target of boxes needs a detector that returns boxes, labels and scores for each image, or logits and "
            f"pred_boxes; this model returns a {type(output).__name__}"
        )
    logits, centers = _get(output, "logits"), _get(output, "pred_boxes")
    likely = logits.softmax(dim=-1)[..., :-1] if probabilities == "softmax" else logits.sigmoid()
    middle, half = centers[..., :2], centers[..., 2:] / 2
    corners = torch.cat([middle - half, middle + half], dim=-1)
    return [Detections(boxes, scores, None) for boxes, scores in zip(corners, likely, strict=True)]


def overlap(wanted: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union, all as (x1, y1, x2, y2): (4,) or (m, 4), with (n, 4) → (n,) or (m, n)."""
    wanted = wanted[..., None, :]
    low = torch.maximum(wanted[..., :2], boxes[:, :2])
    high = torch.minimum(wanted[..., 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    result: Tensor = shared / ((wanted[..., 2:] - wanted[..., :2]).prod(dim=-1) + areas - shared)
    return result


@dataclass(frozen=True, eq=False)
class Boxes:
    """How well a detector reports given boxes, summed over them.

    Each wanted box is matched with the detection of its label for which overlap (intersection over union) times score
    is largest, as D-RISE compares detections (Petsiuk et al., 2021, arXiv:2006.03204), among those that overlap it by
    more than ``threshold``. It adds overlap + score of that detection, the usual target for Grad-CAM of detectors
    (pytorch-grad-cam's, for Faster R-CNN), or with ``how="product"`` overlap · score, which with ``threshold=0`` is
    D-RISE's own. A box that is not found adds 0.

    For what detectors may return see `whycam.cam.targets.detection.detections`.

    Attributes:
        boxes: (4,) or (n, 4) as (x1, y1, x2, y2) for all images, or a list of (n, 4), one entry per image. In the units
            of the detector: pixels, or fractions of width and height where it returns ``pred_boxes``. None: what it
            detects itself with a score of at least ``confidence``.
        labels: of the boxes: indices or class names, one for all or as many as boxes (per image, where boxes are).
            None: any label, of a found box its most likely one. Where ``boxes`` is None, one label to look for.
        threshold: the overlap that a match has to exceed, in [0, 1].
        how: "sum" or "product".
        probabilities: what a detector's logits stand for, "softmax" or "sigmoid"; see
            `whycam.cam.targets.detection.detections`.
        confidence: in [0, 1]; used where ``boxes`` is None.
        fractions: whether boxes are fractions of width and height; found from the detector's output where None.
    """

    boxes: Any = None
    labels: Any = None
    threshold: float = 0.5
    how: str = "sum"
    probabilities: str = "softmax"
    confidence: float = 0.5
    fractions: bool | None = None

    wants_output = True

    def __post_init__(self) -> None:
        if self.how not in ("sum", "product"):
            raise WhycamError(f"boxes count by the 'sum' or the 'product' of overlap and score, not {self.how!r}")
        if self.boxes is None:
            return
        if _depth(self.boxes) not in (1, 2, 3):
            raise WhycamError("boxes are (4,) or (n, 4) as (x1, y1, x2, y2), or a list of (n, 4), one entry per image")
        for entry in self.boxes if self._per_image else [self.boxes]:
            if _tensor(entry).shape[-1:] != (4,) and _tensor(entry).numel():
                raise WhycamError(f"a box is (x1, y1, x2, y2), four numbers; got {tuple(_tensor(entry).shape)}")

    @property
    def _per_image(self) -> bool:
        return self.boxes is not None and _depth(self.boxes) == 3

    def __call__(self, output: Any) -> Tensor:
        """A detector's output for B images → (B,)."""
        found = detections(output, self.probabilities)
        if self.boxes is None:
            return self.freeze(output)(output)
        wanted = self._wanted(len(found))
        return torch.stack([self._score(mine, *each) for mine, each in zip(found, wanted, strict=True)])

    def freeze(self, output: Any) -> Boxes:
        """With the detector's own boxes, where none are given.

        Raises:
            WhycamError: none of the boxes is to be found in any image, so that there is nothing to explain.
        """
        found = detections(output, self.probabilities)
        if self.boxes is None:
            return self._own(found)._counted_in(output)
        score = self(output)
        if not bool(score.any()):
            raise WhycamError(
                f"the detector reports none of the wanted boxes in any image: {self._nearest(found)}; give boxes that "
                "it detects, or a lower threshold"
            )
        return self._counted_in(output)

    def named(self, index: Callable[[str], int]) -> Boxes:
        """The same with labels looked up."""
        return replace(self, labels=numbered(self.labels, index))

    def at(self, rows: Tensor) -> Boxes:
        """The same for the images at ``rows`` (n,)."""
        if not self._per_image:
            return self
        labels = [self.labels[row] for row in rows.tolist()] if _is_list(self.labels) else self.labels
        return replace(self, boxes=[self.boxes[row] for row in rows.tolist()], labels=labels)

    def mirrored(self, width: int) -> Boxes:
        """The same boxes in the mirrored images."""
        if self.boxes is None:
            return self
        extent = 1 if self.fractions else width

        def turn(boxes: Any) -> Tensor:
            corners = _tensor(boxes).clone()
            corners[..., [0, 2]] = extent - corners[..., [2, 0]]
            return corners

        return replace(self, boxes=[turn(entry) for entry in self.boxes] if self._per_image else turn(self.boxes))

    def _wanted(self, images: int) -> list[tuple[Tensor, list[int | None]]]:
        """For each image the boxes (n, 4) and their n labels."""
        boxes = list(self.boxes) if self._per_image else [self.boxes] * images
        if len(boxes) != images:
            raise WhycamError(f"boxes of {len(boxes)} images are given for {images} images; give one entry each")
        labels = list(self.labels) if self._per_image and _is_list(self.labels) else [self.labels] * images
        if len(labels) != images:
            raise WhycamError(f"labels of {len(labels)} images are given for {images} images; give one entry each")
        return [
            (corners, _labels(mine, len(corners)))
            for corners, mine in zip((_tensor(entry).reshape(-1, 4) for entry in boxes), labels, strict=True)
        ]

    def _score(self, found: Detections, boxes: Tensor, labels: Sequence[int | None]) -> Tensor:
        scores, fits = found.of(labels)
        shared = overlap(boxes.to(found.boxes), found.boxes)
        product = shared * scores
        close = fits & (shared > self.threshold)
        hit = close.any(dim=1)
        best = torch.where(close, product, -1)[hit].argmax(dim=1) if bool(hit.any()) else hit.nonzero()[:, 0]
        value = (product if self.how == "product" else shared + scores)[hit]
        return value.gather(1, best[:, None]).sum(dtype=torch.promote_types(value.dtype, torch.float32))

    def _own(self, found: Sequence[Detections]) -> Boxes:
        (wanted,) = {None} if self.labels is None else set(_labels(self.labels, 1))
        boxes, labels, highest = [], [], 0.0
        for mine in found:
            label, score = mine.best()
            fits = torch.ones_like(score, dtype=torch.bool) if wanted is None else label == wanted
            highest = max([highest, *score[fits].tolist()])
            chosen = fits & (score >= self.confidence)
            boxes.append(mine.boxes[chosen].detach())
            labels.append(label[chosen].tolist())
        if not any(map(len, boxes)):
            raise WhycamError(
                f"the detector is not sure of any box: the highest score is {highest:.3g}, the confidence asked for "
                f"{self.confidence:.3g}; give boxes, or a lower confidence"
            )
        return replace(self, boxes=boxes, labels=labels)

    def _counted_in(self, output: object) -> Boxes:
        return self if self.fractions is not None else replace(self, fractions=_has(output, "logits", "pred_boxes"))

    def _nearest(self, found: Sequence[Detections]) -> str:
        best = 0.0
        for mine, (boxes, labels) in zip(found, self._wanted(len(found)), strict=True):
            shared = overlap(boxes.to(mine.boxes), mine.boxes)[mine.of(labels)[1]]
            best = max([best, *shared.tolist()])
        return f"of their labels, the largest overlap is {best:.2g}, the threshold {self.threshold:.2g}"


def _has(entry: object, *names: str) -> bool:
    return all(_get(entry, name) is not None for name in names)


def _get(entry: Any, name: str) -> Any:
    """The tensor of that name, if there is one; at least float32, as half precision is too coarse for places."""
    found = entry.get(name) if isinstance(entry, Mapping) else getattr(entry, name, None)
    if not isinstance(found, Tensor):
        return None
    return at_least_float32(found)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _depth(value: Any) -> int:
    """Axes, also of nested lists of which the inner ones differ in length."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    if not isinstance(value, list | tuple):
        return 0
    return 1 + max((_depth(member) for member in value), default=0)


def _tensor(boxes: Any) -> Tensor:
    if isinstance(boxes, Tensor | np.ndarray):
        return torch.as_tensor(boxes)
    try:
        corners = [one.tolist() if isinstance(one, Tensor | np.ndarray) else one for one in boxes]
        return torch.as_tensor(corners, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise WhycamError(f"a box is (x1, y1, x2, y2), four numbers; {boxes!r} is something else") from error


def _labels(labels: Any, count: int) -> list[int | None]:
    """One label, or as many as boxes → as many."""
    if labels is None or not _is_list(labels):
        return [None if labels is None else int(labels)] * count
    found = [None if label is None else int(label) for label in labels]
    if len(found) != count:
        raise WhycamError(f"{len(found)} labels are given for {count} boxes; give one each, or one for all")
    return found
