"""What a run reports while it works, and the records it leaves in ``history.jsonl``: one JSON line per epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whycam.errors import WhycamError
from whycam.files import write_bytes

HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True)
class StepProgress:
    """How far a run is, after an optimizer step.

    Attributes:
        epoch, epochs: the current epoch (from 1) and their number.
        step, steps: steps done in this epoch and their number.
        batch_loss: this batch's mean loss.
        loss, accuracy: means over the epoch so far (on augmented images; accuracy in [0, 1]).
        images: images trained on since the start of the run.
        lr: the learning rate of this step.
        images_per_second: over the steps since the run was started or resumed.
        seconds_left: estimate for the whole run, in proportion to the pixels that are left.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    batch_loss: float
    loss: float
    accuracy: float
    images: int
    lr: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``history.jsonl``; the test fields are None for an epoch that was not evaluated.

    Attributes:
        epoch: from 1.
        images: images trained on since the start of the run.
        seconds: working time since the start of the run, without interruptions.
        train_loss, train_accuracy: means over the epoch, on augmented images.
        max_lr: the highest learning rate of the epoch.
        size: side of the training crops in pixels.
        test_loss, test_correct, test_images: on the test set, with the averaged weights if the recipe averages.
        lr: the learning rate of the epoch's last step.
    """

    epoch: int
    images: int
    seconds: float
    train_loss: float
    train_accuracy: float
    max_lr: float
    size: int
    test_loss: float | None = None
    test_correct: int | None = None
    test_images: int | None = None
    lr: float | None = None

    @property
    def test_accuracy(self) -> float | None:
        """Share of the test images that are classified correctly, in [0, 1]."""
        if self.test_correct is None or not self.test_images:
            return None
        return self.test_correct / self.test_images

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with the test accuracy."""
        return vars(self) | {"test_accuracy": self.test_accuracy}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochRecord:
        """Read the JSON form."""
        return cls(**{name: value for name, value in values.items() if name != "test_accuracy"})


TrainingCallback = Callable[[StepProgress | EpochRecord], None]
"""Called after steps and after epochs."""


def write_history(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write all records. The file is replaced as a whole, so it never ends in the middle of a line."""
    lines = [json.dumps(record.to_dict()) for record in records]
    write_bytes(folder / HISTORY_FILE, "".join(line + "\n" for line in lines).encode())


def read_history(folder: Path) -> list[EpochRecord]:
    """Read the records of a run.

    Raises:
        WhycamError: there is no history, or it is damaged.
    """
    path = folder / HISTORY_FILE
    try:
        return [EpochRecord.from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    except FileNotFoundError as error:
        raise WhycamError(f"{path}: no such file; is {folder} the folder of a training run?") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise WhycamError(f"{path}: this is not a training history ({error})") from error
