"""Memory that is really full, in processes that may not have more, is one sentence and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from whycam.errors import HardwareError, WhycamError, within_hardware

sys.path.append(str(Path(__file__).parent / "training"))
from tiny import two_classes

SCRIPT = Path(__file__).with_name("short_of_memory.py")
FULL = re.compile(r"whycam: error: memory is full: [\d,]+ MiB more were asked for; (.+)\n")


def way_out(mib, *arguments):
    """What is advised when a command has so little memory."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(mib), *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = FULL.fullmatch(result.stderr)
    assert found, result.stderr
    assert (result.returncode, result.stdout) == (2, "")
    return found[1]


def test_an_evaluation_of_too_many_at_once():
    assert way_out(300, "evaluate", "cifar10-resnet18", "bundled", "--batch-size", 1000) == (
        "give a --batch-size below 1000"
    )


def test_a_training_on_too_many_at_once(tmp_path):
    """The folder is as before: there is none."""
    data = two_classes(tmp_path / "data", test=2)
    options = ["--out", tmp_path / "run", "--set", "batch_size=32", "pad=240", "pad_mode=zero", "crops=[[0,500]]"]
    assert way_out(1000, "train", "--data", data, *options) == "make batch_size or crops smaller"
    assert not (tmp_path / "run").exists()
    assert way_out(1000, "lr-find", "--data", data, *options) == "make batch_size or crops smaller"
    assert not (tmp_path / "run").exists()


def test_what_the_libraries_say_when_memory_is_full():
    """The real errors of torch and NumPy, asked for a pebibyte."""
    for ask in (lambda: torch.empty(2**50, dtype=torch.uint8), lambda: np.ones(2**50, np.uint8)):
        said = pytest.raises(HardwareError, match=r"^memory is full: .+ were asked for; ask for less$")
        with said as caught, within_hardware("ask for less"):
            ask()
        assert isinstance(caught.value, WhycamError)
        assert caught.value.__cause__ is not None


def test_other_errors_pass():
    for error in (RuntimeError("shapes do not fit"), WhycamError("no such file"), ValueError("out of memory")):
        with pytest.raises(type(error)) as caught, within_hardware("ask for less"):
            raise error
        assert caught.value is error
