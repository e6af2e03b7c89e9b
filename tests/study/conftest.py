from __future__ import annotations

import pytest
from real_study import CONFIG, N

import whycam
from whycam.data import take
from whycam.study import run_study


@pytest.fixture(scope="session")
def source():
    return take(whycam.open_source("bundled"), N)


@pytest.fixture(scope="session")
def study(loaded, source, tmp_path_factory):
    """Made once; tests must leave its folder as it was."""
    return run_study(*loaded, source, tmp_path_factory.mktemp("out") / "study", CONFIG)
