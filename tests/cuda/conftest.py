"""What a GPU must do as the CPU does. Every test here is skipped where there is none.

    pytest tests/cuda                              # on a machine with a GPU
    WHYCAM_TEST_DEVICE=cpu pytest tests/cuda       # the same bodies on the CPU: that the tests themselves work

A reference is always made on the CPU, in float64 as a rule.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import torch

import whycam

# Small networks that the rooms next door have as well.
for room in ("cam", "compat"):
    sys.path.append(str(Path(__file__).parent.parent / room))

from near import tensorfloat32  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def device():
    """Where the tests run: CUDA, unless WHYCAM_TEST_DEVICE says otherwise."""
    found = torch.device(os.environ.get("WHYCAM_TEST_DEVICE", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here (WHYCAM_TEST_DEVICE=cpu runs these tests without one)")
    return found


@pytest.fixture(autouse=True)
def _full_precision():
    """No TensorFloat-32, which convolutions use by default and which keeps three digits of a number."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    tensorfloat32(False, "highest")
    yield
    tensorfloat32(*before)


@pytest.fixture(scope="session")
def exact(model):
    """The bundled ResNet-18 on the CPU in float64."""
    return copy.deepcopy(model).double()


@pytest.fixture(scope="session")
def there(model, device):
    """The bundled ResNet-18 on the device in float32; tests must leave it as it was."""
    return copy.deepcopy(model).to(device)


@pytest.fixture(scope="session")
def exact_there(exact, device):
    """The bundled ResNet-18 on the device in float64."""
    return copy.deepcopy(exact).to(device)


@pytest.fixture
def images(batch, device):
    """(4, 3, 32, 32) normalized bundled images on the device."""
    return batch[:4].to(device)


@pytest.fixture(scope="session")
def bundled():
    return whycam.open_source("bundled")
