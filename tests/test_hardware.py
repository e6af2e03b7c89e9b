"""Full memory, in processes with a limit: one clear sentence, and no files are left behind."""

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


def advice_with_memory(mib, *arguments):
    """The advice at the end of the error of a command that may use ``mib`` MiB."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(mib), *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = FULL.fullmatch(result.stderr)
    assert found, result.stderr
    assert (result.returncode, result.stdout) == (2, "")
    return found[1]


def test_evaluate_with_too_large_batches():
    assert advice_with_memory(300, "evaluate", "cifar10-resnet18", "bundled", "--batch-size", 1000) == (
        "give a --batch-size below 1000"
    )


def test_train_and_lr_find_with_too_large_batches(tmp_path):
    """The run folder does not exist afterwards."""
    data = two_classes(tmp_path / "data", test=2)
    options = ["--out", tmp_path / "run", "--set", "batch_size=32", "pad=240", "pad_mode=zero", "crops=[[0,500]]"]
    assert advice_with_memory(1000, "train", "--data", data, *options) == "make batch_size or crops smaller"
    assert not (tmp_path / "run").exists()
    assert advice_with_memory(1000, "lr-find", "--data", data, *options) == "make batch_size or crops smaller"
    assert not (tmp_path / "run").exists()


def test_memory_errors_of_torch_and_numpy():
    """The errors of torch and NumPy for a request of a pebibyte."""
    for allocate in (lambda: torch.empty(2**50, dtype=torch.uint8), lambda: np.ones(2**50, np.uint8)):
        raises = pytest.raises(HardwareError, match=r"^memory is full: .+ were asked for; ask for less$")
        with raises as caught, within_hardware("ask for less"):
            allocate()
        assert isinstance(caught.value, WhycamError)
        assert caught.value.__cause__ is not None


def test_other_errors_are_not_changed():
    for error in (RuntimeError("shapes do not fit"), WhycamError("no such file"), ValueError("out of memory")):
        with pytest.raises(type(error)) as caught, within_hardware("ask for less"):
            raise error
        assert caught.value is error
