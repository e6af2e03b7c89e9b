"""Figures of a training run: loss and accuracy by epoch, and the learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whycam.errors import missing_extra
from whycam.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from whycam.training.history import EpochRecord
    from whycam.training.lr_find import LrFindResult

DPI = 150
TRAIN, TEST, INK, SOFT, LINE = "#2f6690", "#c8553d", "#1b1d22", "#575b63", "#dedad1"


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG to ``path``; the file is never incomplete.

    Raises:
        WhycamError: the file cannot be written.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
    return path


def draw_curves(history: Sequence[EpochRecord]) -> Figure:
    """Four panels: training loss and accuracy above, test loss and accuracy below, each by epoch.

    Both accuracies have the same scale, so that the gap between training and test is visible. Epochs that were not
    evaluated have no test point. Training values are means over the augmented images of the epoch; test values are of
    the (averaged) weights at the end of the epoch.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(9.0, 6.0)
    axes = figure.subplots(2, 2, sharex=True)
    tested = [entry for entry in history if entry.test_accuracy is not None]
    epochs, test_epochs = [entry.epoch for entry in history], [entry.epoch for entry in tested]
    panels = (
        (axes[0, 0], "Training loss", epochs, [entry.train_loss for entry in history], TRAIN),
        (axes[0, 1], "Training accuracy (%)", epochs, [100 * entry.train_accuracy for entry in history], TRAIN),
        (axes[1, 0], "Test loss", test_epochs, [entry.test_loss or 0.0 for entry in tested], TEST),
        (axes[1, 1], "Test accuracy (%)", test_epochs, [100 * (entry.test_accuracy or 0.0) for entry in tested], TEST),
    )
    for ax, title, xs, ys, color in panels:
        ax.plot(xs, ys, color=color, marker="o" if len(xs) <= 30 else "", markersize=3.5, linewidth=1.6)
        _style(ax, title)
        if ys:
            form = "{:.2f}" if "%" in title else "{:.3f}"
            ax.annotate(
                form.format(ys[-1]), (xs[-1], ys[-1]), (0, 7), textcoords="offset points", ha="right", color=color
            )
    low = min(
        [100 * entry.train_accuracy for entry in history] + [100 * (e.test_accuracy or 0.0) for e in tested], default=0
    )
    for ax in axes[:, 1]:
        ax.set_ylim(max(0.0, low - 5), 101)
    for ax in axes[1]:
        ax.set_xlabel("epoch", color=SOFT)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_lr_find(result: LrFindResult) -> Figure:
    """Loss by learning rate (logarithmic), measured and smoothed, with the suggestion marked."""
    figure = _figure(7.0, 4.2)
    ax = figure.subplots()
    ax.plot(result.lrs, result.losses, color=LINE, linewidth=1.2, label="each batch")
    ax.plot(result.lrs, result.smoothed, color=TRAIN, linewidth=1.8, label="smoothed")
    at = result.lrs.index(result.suggestion)
    ax.axvline(result.suggestion, color=TEST, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot(
        [result.suggestion], [result.smoothed[at]], "o", color=TEST, label=f"steepest fall: {result.suggestion:.2g}"
    )
    ax.set_xscale("log")
    low, start = min(result.smoothed), result.smoothed[0]
    ax.set_ylim(low - 0.15 * (start - low), start + 0.8 * max(start - low, 0.1))
    ax.set_xlabel("learning rate", color=SOFT)
    _style(ax, "Learning-rate range test: loss")
    ax.legend(frameon=False, labelcolor=INK)
    return figure


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.grid(color=LINE, linewidth=0.6)
    ax.tick_params(colors=SOFT, labelsize=8)
    for spine in ax.spines.values():
        spine.set_color(LINE)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "study", "drawing figures") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
