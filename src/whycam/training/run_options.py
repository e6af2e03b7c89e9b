"""How a training run is carried out, apart from its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from whycam.training.history import TrainingCallback


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. None of these options changes the trained weights, except for the device's rounding.

    Attributes:
        resume: continue the run in the output folder; data, recipe and seed must be the same.
        device: "auto", "cpu", "cuda", "cuda:N".
        on_progress: called on rank 0 with a ``StepProgress`` after steps (on a GPU, after every tenth) and with an
            ``EpochRecord`` after epochs.
        checkpoint_seconds: time between saves within an epoch.
        checkpoint_epochs: save after every epoch. If an epoch takes a second, writing the state takes as long; False
            leaves the saves every ``checkpoint_seconds``, at a stop and at the end.
    """

    resume: bool = False
    device: str = "auto"
    on_progress: TrainingCallback | None = None
    checkpoint_seconds: float = 300.0
    checkpoint_epochs: bool = True
