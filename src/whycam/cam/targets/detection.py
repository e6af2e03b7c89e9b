"""A target for detectors: how well the detector reports given boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.cam.targets.indices import names_to_indices
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32


@dataclass(frozen=True)
class Detections:
    """A detector's output for one image.

    Attributes:
        boxes: (n, 4) as (x1, y1, x2, y2).
        scores: (n,), or (n, K) if every box has a probability of every class.
        labels: (n,); None if ``scores`` is (n, K).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor | None

    def of(self, labels: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """For each of m labels (None: any label), every box's score for it and whether the box has it: two (m, n)."""
        if self.labels is None:
            highest = self.scores.amax(dim=1)
            columns = [highest if label is None else self.scores[:, self._checked(label)] for label in labels]
            scores = torch.stack(columns) if columns else self.scores.new_zeros(0, len(self.boxes))
            return scores, torch.ones_like(scores, dtype=torch.bool)
        matches = [torch.ones_like(self.labels).bool() if label is None else self.labels == label for label in labels]
        no_label = self.labels.new_zeros(0, len(self.boxes)).bool()
        return self.scores.expand(len(labels), -1), torch.stack(matches) if matches else no_label

    def best(self) -> tuple[Tensor, Tensor]:
        """Every box's label and score, (n,) each."""
        if self.labels is not None:
            return self.labels, self.scores
        scores, labels = self.scores.max(dim=1)
        return labels, scores

    def _checked(self, label: int) -> int:
        if not 0 <= label < self.scores.shape[1]:
            raise WhycamError(f"label {label} does not exist; this detector has 0 to {self.scores.shape[1] - 1}")
        return label


def detections(output: object, probabilities: str = "softmax") -> list[Detections]:
    """A detector's output as one `Detections` per image; differentiable.

    Args:
        output: a list with a mapping of ``boxes`` (n, 4), ``labels`` and ``scores`` (n,) per image, as torchvision's
            detectors return it; or ``logits`` (B, Q, K) and ``pred_boxes`` (B, Q, 4) as (center x, center y, width,
            height) in fractions of the image, in a mapping or dataclass, as transformers' DETR models return it.
        probabilities: how such logits become probabilities: "softmax", with "no object" as the last class (DETR,
            YOLOS), or "sigmoid" (Conditional DETR, Deformable DETR, RT-DETR).

    Raises:
        WhycamError: the output has neither form, or ``probabilities`` is unknown.
    """
    if probabilities not in ("softmax", "sigmoid"):
        raise WhycamError(f"a detector's probabilities are 'softmax' or 'sigmoid', not {probabilities!r}")
    if isinstance(output, list | tuple) and all(_has(image, "boxes", "labels", "scores") for image in output):
        return [Detections(*(_get(image, name) for name in ("boxes", "scores", "labels"))) for image in output]
    if not _has(output, "logits", "pred_boxes"):
        raise WhycamError(
            "a target of boxes needs a detector that returns boxes, labels and scores for each image, or logits and "
            f"pred_boxes; this model returns a {type(output).__name__}"
        )
    logits, centers = _get(output, "logits"), _get(output, "pred_boxes")
    class_scores = logits.softmax(dim=-1)[..., :-1] if probabilities == "softmax" else logits.sigmoid()
    center, half_size = centers[..., :2], centers[..., 2:] / 2
    corners = torch.cat([center - half_size, center + half_size], dim=-1)
    return [Detections(boxes, scores, None) for boxes, scores in zip(corners, class_scores, strict=True)]


def overlap(wanted: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of boxes (x1, y1, x2, y2): (4,) or (m, 4), with (n, 4) → (n,) or (m, n)."""
    wanted = wanted[..., None, :]
    low = torch.maximum(wanted[..., :2], boxes[:, :2])
    high = torch.minimum(wanted[..., 2:], boxes[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    iou: Tensor = intersection / ((wanted[..., 2:] - wanted[..., :2]).prod(dim=-1) + areas - intersection)
    return iou


@dataclass(frozen=True, eq=False)
class Boxes:
    """How well a detector reports given boxes, summed over the boxes.

    Each wanted box is matched with one detection: among those with its label and an overlap (intersection over union)
    of more than ``threshold``, the one with the largest product of overlap and score, as D-RISE compares detections
    (Petsiuk et al., 2021, arXiv:2006.03204). The box adds overlap + score of that detection, as in pytorch-grad-cam's
    target for Faster R-CNN. With ``how="product"`` it adds overlap · score, which is D-RISE's own target if
    ``threshold=0``. A box without a match adds 0.

    `whycam.cam.targets.detection.detections` lists the outputs of detectors that are supported.

    Attributes:
        boxes: (4,) or (n, 4) as (x1, y1, x2, y2) for all images, or a list of (n, 4), one entry per image. In the units
            of the detector: pixels, or fractions of width and height if it returns ``pred_boxes``. None: the boxes that
            the detector reports itself with a score of at least ``confidence``.
        labels: labels of the boxes, as indices or class names: one for all boxes, or one per box (in a list per image,
            if boxes are). None: any label; a match then counts with its most likely one. If ``boxes`` is None, the one
            label to look for.
        threshold: the overlap that a match has to exceed, in [0, 1].
        how: "sum" or "product".
        probabilities: how a detector's logits become probabilities, "softmax" or "sigmoid"; see
            `whycam.cam.targets.detection.detections`.
        confidence: in [0, 1]; used if ``boxes`` is None.
        fractions: whether boxes are fractions of width and height; if None, found from the detector's output.
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
        for boxes in self.boxes if self._per_image else [self.boxes]:
            if _tensor(boxes).shape[-1:] != (4,) and _tensor(boxes).numel():
                raise WhycamError(f"a box is (x1, y1, x2, y2), four numbers; got {tuple(_tensor(boxes).shape)}")

    @property
    def _per_image(self) -> bool:
        return self.boxes is not None and _depth(self.boxes) == 3

    def __call__(self, output: Any) -> Tensor:
        """A detector's output for B images → (B,)."""
        detected = detections(output, self.probabilities)
        if self.boxes is None:
            return self.freeze(output)(output)
        wanted = self._wanted(len(detected))
        return torch.stack([self._score(image, *boxes) for image, boxes in zip(detected, wanted, strict=True)])

    def freeze(self, output: Any) -> Boxes:
        """The same target with the detector's own boxes, if ``boxes`` is None.

        Raises:
            WhycamError: the detector reports none of the boxes in any image, so there is nothing to explain.
        """
        detected = detections(output, self.probabilities)
        if self.boxes is None:
            return self._with_detected_boxes(detected)._with_units_of(output)
        score = self(output)
        if not bool(score.any()):
            raise WhycamError(
                f"the detector reports none of the wanted boxes in any image: {self._closest(detected)}; give boxes "
                "that it detects, or a lower threshold"
            )
        return self._with_units_of(output)

    def named(self, index: Callable[[str], int]) -> Boxes:
        """The same target with class names replaced by indices."""
        return replace(self, labels=names_to_indices(self.labels, index))

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

        def mirror(boxes: Any) -> Tensor:
            corners = _tensor(boxes).clone()
            corners[..., [0, 2]] = extent - corners[..., [2, 0]]
            return corners

        return replace(self, boxes=list(map(mirror, self.boxes)) if self._per_image else mirror(self.boxes))

    def _wanted(self, images: int) -> list[tuple[Tensor, list[int | None]]]:
        """For each image, the wanted boxes (n, 4) and their n labels."""
        boxes = list(self.boxes) if self._per_image else [self.boxes] * images
        if len(boxes) != images:
            raise WhycamError(f"boxes of {len(boxes)} images are given for {images} images; give one entry each")
        labels = list(self.labels) if self._per_image and _is_list(self.labels) else [self.labels] * images
        if len(labels) != images:
            raise WhycamError(f"labels of {len(labels)} images are given for {images} images; give one entry each")
        return [
            (corners, _labels(image_labels, len(corners)))
            for corners, image_labels in zip((_tensor(item).reshape(-1, 4) for item in boxes), labels, strict=True)
        ]

    def _score(self, detected: Detections, boxes: Tensor, labels: Sequence[int | None]) -> Tensor:
        scores, has_label = detected.of(labels)
        iou = overlap(boxes.to(detected.boxes), detected.boxes)
        product = iou * scores
        matches = has_label & (iou > self.threshold)
        matched = matches.any(dim=1)
        candidates = torch.where(matches, product, -1)[matched]
        best = candidates.argmax(dim=1) if len(candidates) else matched.nonzero()[:, 0]
        value = (product if self.how == "product" else iou + scores)[matched]
        return value.gather(1, best[:, None]).sum(dtype=torch.promote_types(value.dtype, torch.float32))

    def _with_detected_boxes(self, detected: Sequence[Detections]) -> Boxes:
        """The same target with the boxes that the detector reports itself."""
        (wanted,) = {None} if self.labels is None else set(_labels(self.labels, 1))
        boxes, labels, highest = [], [], 0.0
        for image in detected:
            label, score = image.best()
            has_label = torch.ones_like(score, dtype=torch.bool) if wanted is None else label == wanted
            highest = max([highest, *score[has_label].tolist()])
            chosen = has_label & (score >= self.confidence)
            boxes.append(image.boxes[chosen].detach())
            labels.append(label[chosen].tolist())
        if not any(map(len, boxes)):
            raise WhycamError(
                f"the detector is not sure of any box: the highest score is {highest:.3g}, the required confidence "
                f"{self.confidence:.3g}; give boxes, or a lower confidence"
            )
        return replace(self, boxes=boxes, labels=labels)

    def _with_units_of(self, output: object) -> Boxes:
        """The same target with ``fractions`` set, as the detector's output says."""
        return self if self.fractions is not None else replace(self, fractions=_has(output, "logits", "pred_boxes"))

    def _closest(self, detected: Sequence[Detections]) -> str:
        """The closest detection, in words, for an error message."""
        best = 0.0
        for image, (boxes, labels) in zip(detected, self._wanted(len(detected)), strict=True):
            iou = overlap(boxes.to(image.boxes), image.boxes)[image.of(labels)[1]]
            best = max([best, *iou.tolist()])
        return f"of their labels, the largest overlap is {best:.2g}, the threshold {self.threshold:.2g}"


def _has(output: object, *names: str) -> bool:
    return all(_get(output, name) is not None for name in names)


def _get(output: Any, name: str) -> Any:
    """The tensor of that name, or None; at least float32, because half precision is too coarse for coordinates."""
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if not isinstance(value, Tensor):
        return None
    return at_least_float32(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _depth(value: Any) -> int:
    """The number of axes, also of nested lists whose inner lists differ in length."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    if not isinstance(value, list | tuple):
        return 0
    return 1 + max((_depth(member) for member in value), default=0)


def _tensor(boxes: Any) -> Tensor:
    if isinstance(boxes, Tensor | np.ndarray):
        return torch.as_tensor(boxes)
    try:
        corners = [box.tolist() if isinstance(box, Tensor | np.ndarray) else box for box in boxes]
        return torch.as_tensor(corners, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise WhycamError(f"a box is (x1, y1, x2, y2), four numbers; {boxes!r} is something else") from error


def _labels(labels: Any, count: int) -> list[int | None]:
    """One label for all boxes, or one per box → one per box."""
    if labels is None or not _is_list(labels):
        return [None if labels is None else int(labels)] * count
    per_box = [None if label is None else int(label) for label in labels]
    if len(per_box) != count:
        raise WhycamError(f"{len(per_box)} labels are given for {count} boxes; give one each, or one for all")
    return per_box
