"""Callbacks that show a run: the study's log with a progress bar, and TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from whycam.errors import missing_extra
from whycam.files import writing
from whycam.training.history import EpochRecord, StepProgress, TrainingCallback


def batch_line(progress: StepProgress) -> str:
    """``Loss=0.5431 Batch_id=390 Accuracy=81.23``: this batch's loss, its number from 0, the epoch's accuracy in %."""
    return f"Loss={progress.batch_loss:.4f} Batch_id={progress.step - 1} Accuracy={100 * progress.accuracy:.2f}"


def progress_line(progress: StepProgress) -> str:
    """``Epoch 3/20, 120 of 391: Loss=… Batch_id=… Accuracy=…, 102 images/s, 1:02:03 left``."""
    where = f"Epoch {progress.epoch}/{progress.epochs}, {progress.step} of {progress.steps}"
    return f"{where}: {batch_line(progress)}, {speed_and_time_left(progress)}"


def speed_and_time_left(progress: StepProgress) -> str:
    """``102 images/s, 1:02:03 left``."""
    return f"{progress.images_per_second:,.0f} images/s, {format_duration(progress.seconds_left)} left"


def epoch_lines(record: EpochRecord) -> list[str]:
    """``Max Learning Rate: …`` and, for an epoch that was evaluated, ``Test set: Average loss: …, Accuracy: …``."""
    lines = [f"Max Learning Rate: {record.max_lr:.6g}"]
    if record.test_accuracy is not None:
        lines.append(
            f"Test set: Average loss: {record.test_loss:.4f}, "
            f"Accuracy: {record.test_correct}/{record.test_images} ({100 * record.test_accuracy:.2f}%)"
        )
    return lines


@contextmanager
def live_view(file: IO[str] | None = None, *, every: float = 60.0) -> Iterator[TrainingCallback]:
    """A callback that writes the study's log, and on a terminal also a bar with images/s and the time left.

    Args:
        file: the output; standard error by default.
        every: if the output is not a terminal, print a line about the epoch's progress after this many seconds
            without a line.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bars, TextColumn
    except ModuleNotFoundError as error:
        raise missing_extra("rich", "study", "the command line") from error

    console = Console(file=file, stderr=file is None, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("Epoch {task.fields[epoch]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[line]}  {task.fields[rate]}"),
    )
    latest: StepProgress | None = None
    last_line = time.monotonic()
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None, epoch="", line="", rate="")

        def on_event(event: StepProgress | EpochRecord) -> None:
            nonlocal latest, last_line
            if isinstance(event, StepProgress):
                latest = event
                if not console.is_terminal and event.step < event.steps and time.monotonic() - last_line >= every:
                    console.print(progress_line(event))
                    last_line = time.monotonic()
                bars.update(
                    task,
                    completed=event.step,
                    total=event.steps,
                    epoch=f"{event.epoch}/{event.epochs}",
                    line=batch_line(event),
                    rate=speed_and_time_left(event),
                )
                return
            console.print(f"Epoch {event.epoch}")
            if latest is not None:
                console.print(batch_line(latest))
            for line in epoch_lines(event):
                console.print(line)
            last_line = time.monotonic()

        yield on_event


@contextmanager
def tensorboard(folder: Path) -> Iterator[TrainingCallback]:
    """A callback that writes TensorBoard events to ``folder``; the x-axis is the number of images trained on.

    After a resume the curves continue from the saved state; later events of a killed process are hidden.

    Raises:
        MissingExtraError: tensorboard is not installed.
        WhycamError: the events cannot be written; also raised at the end of the block.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise missing_extra("tensorboard", "train", "writing TensorBoard events") from error

    writers: list[SummaryWriter] = []

    def writer(purge: int) -> SummaryWriter:
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=purge))
        return writers[0]

    def on_event(event: StepProgress | EpochRecord) -> None:
        if isinstance(event, StepProgress):
            # The first event of this process; older events from this number of images on are hidden.
            purge = event.images
            scalars = {
                "step/loss": event.batch_loss,
                "step/lr": event.lr,
                "step/images_per_second": event.images_per_second,
            }
        else:
            # The run was resumed in an evaluation: keep the events of the epoch's last step.
            purge = event.images + 1
            scalars = {
                f"epoch/{name}": value
                for name, value in event.to_dict().items()
                if name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy") and value is not None
            }
        with writing(folder):
            for name, value in scalars.items():
                writer(purge).add_scalar(name, value, event.images)

    try:
        yield on_event
    finally:
        with writing(folder):
            for open_writer in writers:
                open_writer.close()


def format_duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
