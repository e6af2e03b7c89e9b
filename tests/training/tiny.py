"""A small network, a small real data set, and a training run that other processes can start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import whycam
from whycam.data import ArraySource
from whycam.models.resnet import BasicBlock
from whycam.training import Recipe, state as state_module, train
from whycam.training.history import StepProgress

RECIPE = Recipe(
    name="tiny",
    epochs=4,
    batch_size=32,
    lr=0.05,
    crops=((0.0, 12), (0.5, 16)),
    cutout=4,
    jitter=0.2,
    jitter_probability=0.5,
    averaging_every=2,
    precision="fp32",
)

MUON = RECIPE.override(
    {"optimizer": "muon", "momentum": 0.85, "other_rate": 5.0, "bias_rate": 2.0, "sam_radius": 0.05, "sam_from": 0.5}
)
"""The remaining features: orthogonal steps, learning rates per parameter kind, sharpness-aware steps."""


class Tiny(nn.Module):
    """Two convolutions with BatchNorm (or without) and a linear layer."""

    def __init__(self, classes: int, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.linear = nn.Linear(16, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def without_norm(classes: int) -> Tiny:
    return Tiny(classes, norm=False)


def small_resnet(classes: int) -> nn.Module:
    """The ResNet's own blocks, narrow and few."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def real(start: int, stop: int, split: str = "train") -> ArraySource:
    """Some of the bundled CIFAR-10 images."""
    bundled = whycam.open_source("bundled")
    # A fixed shuffle, because the bundled images may be sorted by class.
    index = np.random.default_rng(0).permutation(len(bundled))[start:stop]
    return ArraySource(
        bundled.read(index).numpy(),
        bundled.labels[index],
        bundled.classes,
        tuple(bundled.ids[i] for i in index),
        "CIFAR-10 sample",
        split,
    )


def small(start: int, stop: int, split: str = "train") -> ArraySource:
    """The same at half the size, as 2×2 means."""
    source = real(start, stop, split)
    n = len(source)
    halves = source.images.reshape(n, 3, 16, 2, 16, 2).mean((3, 5)).round().astype(np.uint8)
    return ArraySource(halves, source.labels, source.classes, source.ids, source.name, split)


def two_classes(folder: Path, test: int) -> Path:
    """A folder of real images of two classes as PNG files: per class 16 for training and ``test`` for testing."""
    source = whycam.open_source("bundled")
    for label in (3, 5):
        for count, index in enumerate(np.flatnonzero(source.labels == label)[: 16 + test]):
            path = folder / ("train" if count < 16 else "test") / source.classes[label] / f"{count:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.read([index])[0].permute(1, 2, 0).numpy()).save(path)
    return folder


PREPROCESS = whycam.Preprocess((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (16, 16))


def run(folder, *, recipe=RECIPE, images=256, resume=False, checkpoint_seconds=1e9, on_progress=None, **options):
    """A whole training run with the small network."""
    options = {"network": Tiny, "preprocess": PREPROCESS, "device": "cpu"} | options
    return train(
        recipe,
        small(0, images),
        small(900, 1000, "test"),
        folder,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        on_progress=on_progress,
        **options,
    )


def life(folder: Path, options: dict, die: tuple[str, int] | None, started) -> None:
    """One process of a run, resumed if there is a state; ``die`` = (where, at which save)."""
    torch.set_num_threads(1)
    if die is not None:
        _die_while_saving(*die)
    started.set()
    run(folder, resume=(folder / "state.pt").exists(), **options)


def slow_steps(event) -> None:
    """A callback that slows a run down, so that a signal arrives during training."""
    if isinstance(event, StepProgress):
        time.sleep(0.01)


def _die_while_saving(where: str, at: int) -> None:
    """Let this process kill itself at the ``at``-th save: with a half-written file, before or after the file replaces
    the old one."""
    save, replace, fsync, count = torch.save, Path.replace, os.fsync, [0]

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(content, file) -> None:
        count[0] += 1
        save(content, file)

    def syncing(descriptor) -> None:
        written = Path(f"/proc/self/fd/{descriptor}").readlink()
        if state_module.STATE_FILE in written.name and count[0] == at and where == "half-written":
            os.truncate(written, written.stat().st_size // 2)
            kill()
        fsync(descriptor)

    def replacing(self, target):
        state_file = Path(target).name == state_module.STATE_FILE
        if state_file and count[0] == at and where == "not yet in place":
            kill()
        result = replace(self, target)
        if state_file and count[0] == at and where == "just in place":
            kill()
        return result

    state_module.torch.save = saving
    os.fsync = syncing
    Path.replace = replacing
