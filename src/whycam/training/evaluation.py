"""Accuracy, loss and calibration of a network, with and without test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.metrics.classification import score_classification
from whycam.nn_utils import in_eval_mode
from whycam.training.device_dataset import DeviceDataset

View = Literal["plain", "flip", "six"]
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True)
class Evaluation:
    """A network's scores on labeled images.

    Attributes:
        images: N.
        correct: how many of them are classified correctly.
        loss: mean cross-entropy in nats (no label smoothing).
        ece: expected calibration error over 15 equal bins of confidence (Guo et al., 2017, arXiv:1706.04599).
        per_class: accuracy of each class in [0, 1]; None for a class without images.
    """

    images: int
    correct: int
    loss: float
    ece: float
    per_class: tuple[float | None, ...]

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly, in [0, 1]."""
        return self.correct / self.images

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with the accuracy."""
        return asdict(self) | {"accuracy": self.accuracy, "per_class": list(self.per_class)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read the JSON form."""
        names = ("images", "correct", "loss", "ece")
        return cls(**{name: values[name] for name in names}, per_class=tuple(values["per_class"]))


class StoppedError(Exception):
    """An evaluation was stopped before its end, by its ``stop`` function."""


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    data: DeviceDataset,
    *,
    view: View = "plain",
    batch_size: int = 500,
    bf16: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """(N, K) float32 logits of a network, in its current mode.

    Args:
        model: (B, 3, H, W) → (B, K) logits.
        data: the images.
        view: "plain"; "flip": the mean of the logits for the image and its mirror image; "six": half of that, plus half
            of the same for the image moved by one pixel in both diagonal directions (Jordan, 2024, arXiv:2404.00498).
        batch_size: images per forward pass.
        bf16: compute in bfloat16 (autocast).
        stop: called before every batch; True ends the evaluation.

    Raises:
        StoppedError: ``stop`` returned True.
    """
    logits = []
    for start in range(0, len(data), batch_size):
        if stop():
            raise StoppedError
        x, _ = data.plain_batch(start, start + batch_size)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits.append(_VIEWS[view](lambda batch: model(batch).float(), x))
    return torch.cat(logits)


def _flip(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (model(x) + model(x.flip(3))) / 2


def _six(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    moved = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return _flip(model, x) / 2 + sum((_flip(model, part) for part in moved), torch.zeros(())).to(x.device) / 4


_VIEWS: dict[View, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "plain": lambda model, x: model(x),
    "flip": _flip,
    "six": _six,
}


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Score (N, K) logits against (N,) labels."""
    scores = score_classification(logits, labels)
    totals = [sum(row) for row in scores.confusion]
    return Evaluation(
        images=scores.n,
        correct=scores.correct,
        loss=scores.cross_entropy,
        ece=scores.ece,
        per_class=tuple(row[k] / totals[k] if totals[k] else None for k, row in enumerate(scores.confusion)),
    )


def evaluate_model(
    model: nn.Module,
    data: DeviceDataset,
    *,
    view: View = "plain",
    bf16: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate a network in eval mode; its own mode is restored afterwards.

    Raises:
        StoppedError: ``stop`` returned True.
    """
    with in_eval_mode(model):
        return evaluate_logits(predict_logits(model, data, view=view, bf16=bf16, stop=stop), data.labels)
