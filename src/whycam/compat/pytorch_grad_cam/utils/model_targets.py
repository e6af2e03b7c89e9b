"""Targets: each gets one image's output and returns the score to be explained.

Given a batch (B, K) instead of one image's (K,), the classifier targets return (B,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.cam.targets.detection import overlap
from whycam.compat.pytorch_grad_cam._arrays import Array


class _OfCategory:
    def __init__(self, category: int) -> None:
        self.category = category


class ClassifierOutputTarget(_OfCategory):
    """The logit of one class."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """(K,) → scalar, (B, K) → (B,)."""
        return model_output[..., self.category]


class ClassifierOutputSoftmaxTarget(_OfCategory):
    """The softmax probability of one class."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """(K,) → scalar, (B, K) → (B,)."""
        return model_output.softmax(dim=-1)[..., self.category]


class ClassifierOutputReST(_OfCategory):
    """The logit plus its log-probability (Cai, 2025, arXiv:2501.06261)."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """(K,) → scalar, (B, K) → (B,)."""
        return (model_output + F.log_softmax(model_output, dim=-1))[..., self.category]


class BinaryClassifierOutputTarget(_OfCategory):
    """A single logit for category 1, its negative for any other category."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Any shape, kept."""
        return model_output if self.category == 1 else -model_output


class SoftmaxOutputTarget:
    """All probabilities; for metrics, which accept several numbers per image."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """(…, K) → (…, K)."""
        return model_output.softmax(dim=-1)


class RawScoresOutputTarget:
    """The output as it is; for metrics, or models that return one number per image."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Any shape, kept."""
        return model_output


class SemanticSegmentationTarget:
    """A class's scores summed over a region.

    Args:
        category: the class.
        mask: (H, W), weights or booleans, at the output's resolution.
    """

    def __init__(self, category: int, mask: Array) -> None:
        self.category = category
        self.mask = torch.from_numpy(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        """(K, H, W) → scalar."""
        return (model_output[self.category] * self.mask.to(model_output.device)).sum()


class FasterRCNNBoxScoreTarget:
    """How well a detector still finds given boxes: overlap plus confidence, summed over those it finds.

    Args:
        labels: one per box.
        bounding_boxes: (x1, y1, x2, y2) each.
        iou_threshold: a box counts where the best match overlaps more than this and has the same label.
    """

    def __init__(self, labels: Sequence[Any], bounding_boxes: Sequence[Any], iou_threshold: float = 0.5) -> None:
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = iou_threshold

    def __call__(self, model_outputs: Mapping[str, Tensor]) -> Tensor:
        """One image's ``boxes`` (n, 4), ``labels`` and ``scores`` (n,) → (1,)."""
        boxes = model_outputs["boxes"]
        total = boxes.new_zeros(1)
        if not len(boxes):
            return total
        for wanted, label in zip(self.bounding_boxes, self.labels, strict=False):
            shared = overlap(torch.as_tensor(wanted).to(boxes), boxes)
            best = shared.argmax()
            if shared[best] > self.iou_threshold and bool(model_outputs["labels"][best] == label):
                total = total + shared[best] + model_outputs["scores"][best]
        return total


class FinerWeightedTarget:
    """What distinguishes a class from others: the mean of y_c − alpha · y_other, weighted by the others' probabilities.

    Args:
        main_category: the class.
        comparison_categories: the others.
        alpha: how much of them is taken off.
    """

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: Tensor) -> Tensor:
        """(K,) → scalar, (B, K) → (B,)."""
        others = list(self.comparison_categories)
        weights = model_output.softmax(dim=-1)[..., others]
        differences = model_output[..., self.main_category, None] - self.alpha * model_output[..., others]
        return (weights * differences).sum(dim=-1) / (weights.sum(dim=-1) + 1e-9)
