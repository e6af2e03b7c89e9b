"""Results on a GPU compared with results on the CPU. All tests here are skipped on a machine without a GPU.

    pytest tests/cuda                              # on a machine with a GPU
    WHYCAM_TEST_DEVICE=cpu pytest tests/cuda       # the same tests on the CPU, to check the tests themselves

References are computed on the CPU, in float64 if not stated otherwise.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import torch

import whycam

# Helper modules of other test folders.
for folder in ("cam", "compat"):
    sys.path.append(str(Path(__file__).parent.parent / folder))

from map_errors import set_tensorfloat32  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def device():
    """The device of the tests: CUDA, or the value of WHYCAM_TEST_DEVICE."""
    found = torch.device(os.environ.get("WHYCAM_TEST_DEVICE", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here (WHYCAM_TEST_DEVICE=cpu runs these tests without one)")
    return found


@pytest.fixture(autouse=True)
def _full_precision():
    """Switch TensorFloat-32 off, which convolutions use by default and which has a precision of three digits."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    set_tensorfloat32(False, "highest")
    yield
    set_tensorfloat32(*before)


@pytest.fixture(scope="session")
def exact(model):
    """The bundled ResNet-18 on the CPU in float64."""
    return copy.deepcopy(model).double()


@pytest.fixture(scope="session")
def there(model, device):
    """The bundled ResNet-18 on the device in float32; tests must not change it."""
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
