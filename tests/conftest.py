"""What several rooms' tests share: the bundled network and images, the goldens, the full data where it lies."""

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

# A build must not fail by a draw: there the examples are always the same, elsewhere they are new each time.
settings.register_profile("build", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("build")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
CIFAR10_TOOL = SHARED / "tools" / "cifar10.py"


@pytest.fixture(scope="session")
def loaded():
    """(model, spec) of the bundled ResNet-18; tests must leave it as it was."""
    return whycam.load("cifar10-resnet18")


@pytest.fixture(scope="session")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="session")
def spec(loaded):
    return loaded[1]


@pytest.fixture(scope="session")
def standin():
    """The network that the goldens were made with."""
    path = SHARED / "standin" / "model.safetensors"
    if not path.exists():
        pytest.skip("the reference network lies outside the repository and is not here")
    return whycam.load(path)[0]


@pytest.fixture(scope="session")
def goldens():
    """pytorch-grad-cam's own maps, and the images they are of."""
    path = SHARED / "goldens" / "pgc.npz"
    if not path.exists():
        pytest.skip("the golden maps lie outside the repository and are not here")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def batch(spec):
    """(8, 3, 32, 32) normalized bundled images."""
    return spec.preprocess(whycam.open_source("bundled").read(range(8)))


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    """The folder with all of CIFAR-10 as official binary files, made from the lossless copy."""
    if not CIFAR10_TOOL.exists():
        pytest.skip("the full data set lies outside the repository and is not here")
    key = hashlib.sha256(CIFAR10_TOOL.read_bytes()).hexdigest()[:12]
    here = tmp_path_factory.getbasetemp()
    # Each of pytest-xdist's processes has a folder of its own, one level down.
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
