"""Fixtures for the tests of several packages: the bundled network and images, golden maps, the full data set."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import whycam

# In CI, use the same examples every time, so that a build never fails by chance. Elsewhere, draw new examples.
settings.register_profile("build", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("build")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
CIFAR10_TOOL = SHARED / "tools" / "cifar10.py"


@pytest.fixture(scope="session")
def loaded():
    """(model, spec) of the bundled ResNet-18, shared by all tests: do not change it."""
    return whycam.load("cifar10-resnet18")


@pytest.fixture(scope="session")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="session")
def spec(loaded):
    return loaded[1]


@pytest.fixture(scope="session")
def standin():
    """The network whose maps the golden file contains."""
    path = SHARED / "standin" / "model.safetensors"
    if not path.exists():
        pytest.skip("the reference network is not part of the repository and was not found")
    return whycam.load(path)[0]


@pytest.fixture(scope="session")
def goldens():
    """Maps that pytorch-grad-cam computed, and their images."""
    path = SHARED / "goldens" / "pgc.npz"
    if not path.exists():
        pytest.skip("the golden maps are not part of the repository and were not found")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def batch(spec):
    """(8, 3, 32, 32) normalized bundled images."""
    return spec.preprocess(whycam.open_source("bundled").read(range(8)))


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    """A folder with all of CIFAR-10 as official binary files, converted from a lossless copy."""
    if not CIFAR10_TOOL.exists():
        pytest.skip("the full data set is not part of the repository and was not found")
    key = hashlib.sha256(CIFAR10_TOOL.read_bytes()).hexdigest()[:12]
    here = tmp_path_factory.getbasetemp()
    # With pytest-xdist, every process has its own folder one level below; share the folder above.
    root = here.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else here.parent
    folder = root / f"whycam-cifar10-{key}"
    with (root / f"whycam-cifar10-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            subprocess.run([sys.executable, str(CIFAR10_TOOL), str(folder)], check=True, capture_output=True)
            (folder / "done").touch()
    return folder


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
