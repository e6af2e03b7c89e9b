"""The study's log, the progress bar, TensorBoard events and the curves."""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import sys
import threading
from dataclasses import replace

import pytest
from tiny import run

from whycam.errors import MissingExtraError, WhycamError
from whycam.training import read_history
from whycam.training.history import EpochRecord, StepProgress
from whycam.training.plots import draw_curves, write_figure
from whycam.training.progress import batch_line, epoch_lines, format_duration, live_view, tensorboard

PROGRESS = StepProgress(
    epoch=1, epochs=20, step=391, steps=391, batch_loss=0.54321, loss=0.6, accuracy=0.81234, images=50_000,
    lr=1e-3, images_per_second=1234.5, seconds_left=3723.4,
)  # fmt: skip
RECORD = EpochRecord(
    epoch=1, images=50_000, seconds=49.0, train_loss=0.6, train_accuracy=0.81, max_lr=2.1e-3, size=32,
    test_loss=0.24567, test_correct=9214, test_images=10_000, lr=2e-3,
)  # fmt: skip


def test_log_lines_are_the_studys():
    assert batch_line(PROGRESS) == "Loss=0.5432 Batch_id=390 Accuracy=81.23"
    assert epoch_lines(RECORD) == [
        "Max Learning Rate: 0.0021",
        "Test set: Average loss: 0.2457, Accuracy: 9214/10000 (92.14%)",
    ]
    untested = EpochRecord(1, 50_000, 49.0, 0.6, 0.81, 2.1e-3, 32)
    assert epoch_lines(untested) == ["Max Learning Rate: 0.0021"]


def test_a_pipe_gets_lines_only():
    file = io.StringIO()
    with live_view(file) as listen:
        listen(PROGRESS)
        listen(RECORD)
    assert file.getvalue().splitlines() == ["Epoch 1", batch_line(PROGRESS), *epoch_lines(RECORD)]


def test_a_pipe_gets_a_progress_line_every_minute(monkeypatch):
    """One line per minute without other output, however many steps there are."""
    now = [0.0]
    monkeypatch.setattr("whycam.training.progress.time.monotonic", lambda: now[0])
    file = io.StringIO()
    said = []
    with live_view(file) as listen:
        for second in range(1, 391):
            now[0] = float(second)
            before = file.tell()
            listen(replace(PROGRESS, step=second))
            if file.tell() > before:
                said.append(second)
            if second == 100:
                listen(RECORD)
    assert said == [60, 160, 220, 280, 340]
    first = file.getvalue().splitlines()[0]
    assert first == "Epoch 1/20, 60 of 391: Loss=0.5432 Batch_id=59 Accuracy=81.23, 1,234 images/s, 1:02:03 left"


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "160")
        patch.delenv("NO_COLOR", raising=False)
        with live_view(file) as listen:
            listen(PROGRESS)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "Epoch 1/20" in text
    assert "100%  Loss=0.5432 Batch_id=390 Accuracy=81.23  1,234 images/s, 1:02:03 left" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_curves_show_the_history(tmp_path):
    run(tmp_path / "run")
    history = read_history(tmp_path / "run")
    axes = draw_curves(history).axes
    assert [ax.get_title(loc="left") for ax in axes] == [
        "Training loss", "Training accuracy (%)", "Test loss", "Test accuracy (%)",
    ]  # fmt: skip
    for ax, values in zip(
        axes,
        (
            [r.train_loss for r in history],
            [100 * r.train_accuracy for r in history],
            [r.test_loss for r in history],
            [100 * r.test_accuracy for r in history],
        ),
        strict=True,
    ):
        assert list(ax.lines[0].get_xdata()) == [1, 2, 3, 4]
        assert list(ax.lines[0].get_ydata()) == values
    assert axes[1].get_ylim() == axes[3].get_ylim()
    path = write_figure(draw_curves(history), tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    draw_curves([])  # an empty history is valid
    assert "matplotlib.pyplot" not in sys.modules


def test_unreadable_history_errors(tmp_path):
    with pytest.raises(WhycamError, match=r"history\.jsonl: no such file; is .* the folder of a training run\?"):
        read_history(tmp_path)
    for content in ("{", '{"epoch": 1}', '{"epoch": 1, "more": 2}', "7", "\xff"):
        (tmp_path / "history.jsonl").write_bytes(content.encode("latin-1"))
        with pytest.raises(WhycamError, match=r"history\.jsonl: this is not a training history"):
            read_history(tmp_path)


def test_tensorboard_events_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path / "events") as listen:
        result = run(tmp_path / "run", on_progress=listen)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [scalar.step for scalar in events.Scalars("step/loss")] == list(range(32, 1025, 32))
    assert [scalar.step for scalar in events.Scalars("epoch/test_accuracy")] == [256, 512, 768, 1024]
    assert [scalar.value for scalar in events.Scalars("epoch/test_accuracy")] == pytest.approx(
        [record.test_accuracy for record in result.history]
    )


@pytest.mark.parametrize("at", [3, 8])
def test_tensorboard_curves_continue_after_a_resume(tmp_path, at):
    """Stopped within an epoch, and between its last step and its evaluation."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(event):
        if isinstance(event, StepProgress) and (event.epoch, event.step) == (3, at):
            os.kill(os.getpid(), signal.SIGTERM)

    with tensorboard(tmp_path / "events") as listen:
        run(tmp_path / "run", on_progress=lambda event: (listen(event), stop(event)))
    with tensorboard(tmp_path / "events") as listen:
        run(tmp_path / "run", resume=True, on_progress=listen)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [scalar.step for scalar in events.Scalars("step/loss")] == list(range(32, 1025, 32))
    assert [scalar.step for scalar in events.Scalars("epoch/train_loss")] == [256, 512, 768, 1024]


def test_unwritable_events_error(tmp_path, monkeypatch):
    """The operating system itself refuses, through a limit on the size of files."""
    pytest.importorskip("tensorboard")
    # tensorboard's own thread tells of its end too.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    before = set(threading.enumerate())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_beyond_the_limit():
        with tensorboard(tmp_path / "events") as listen:
            listen(PROGRESS)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
            for step in range(2, 20_000):
                listen(replace(PROGRESS, step=step))

    try:
        with pytest.raises(WhycamError, match=r"events: cannot be written: File too large"):
            write_beyond_the_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"rich, which is not installed: pip install 'whycam\[study\]'"):
        live_view().__enter__()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard, which is not installed: pip install 'whycam\[train\]'"):
        tensorboard(tmp_path).__enter__()
