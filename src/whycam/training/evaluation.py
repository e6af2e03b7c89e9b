"""Evaluation: accuracy, loss and calibration, plain and with test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.metrics.classification import score_classification
from whycam.nn_utils import in_eval_mode
from whycam.training.device_dataset import DeviceData

View = Literal["plain", "flip", "six"]
VIEWS: tuple[View, ...] = ("plain", "flip", "six")


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a labeled set.

    Attributes:
        images: N.
        correct: how many of them are classified right.
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
        """Share classified right, in [0, 1]."""
        return self.correct / self.images

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with the accuracy."""
        return asdict(self) | {"accuracy": self.accuracy, "per_class": list(self.per_class)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read the JSON form back."""
        names = ("images", "correct", "loss", "ece")
        return cls(**{name: values[name] for name in names}, per_class=tuple(values["per_class"]))


class StoppedError(Exception):
    """An evaluation was asked to stop before its end."""


@torch.no_grad()
def predict(
    model: nn.Module,
    data: DeviceData,
    *,
    view: View = "plain",
    batch_size: int = 500,
    bf16: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """(N, K) float32 logits of a network in its present mode; ``stop`` is asked before every batch.

    ``view`` is "plain"; "flip": the mean of the image's and its mirror image's logits; "six": as in Jordan (2024,
    arXiv:2404.00498), half of that and half of the same for the image moved by one pixel diagonally, to either side.
    """
    answers = []
    for start in range(0, len(data), batch_size):
        if stop():
            raise StoppedError
        x, _ = data.plain(start, start + batch_size)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            answers.append(_VIEWS[view](lambda batch: model(batch).float(), x))
    return torch.cat(answers)


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


def measure(logits: Tensor, labels: Tensor) -> Evaluation:
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


def evaluate(
    model: nn.Module,
    data: DeviceData,
    *,
    view: View = "plain",
    bf16: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate a network in eval mode; its mode is afterwards as before.

    Raises:
        StoppedError: ``stop`` said so.
    """
    with in_eval_mode(model):
        return measure(predict(model, data, view=view, bf16=bf16, stop=stop), data.labels)
