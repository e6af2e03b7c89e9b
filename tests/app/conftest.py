"""Real server processes, tested over real sockets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from whycam.report import write_report
from whycam.study.folder import Study

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "report"))
from make_study import Recipe, make_study  # noqa: E402 (found through the path above)
from served import Served, photo_bytes  # noqa: E402


@pytest.fixture(scope="session")
def launch():
    """Start a server. Those that still run at the end are stopped, and must have reported no error."""
    running: list[Served] = []

    def start(*arguments: str, script: Sequence[str] = ("-m", "whycam", "serve")) -> Served:
        served = Served([*script, *map(str, arguments)])
        running.append(served)
        return served

    yield start
    ends = []
    for served in running:
        for connection in served.sockets:
            connection.close()
        if served.process.poll() is None:
            status, _, err = served.stop()
            ends.append((status, err))
    assert set(ends) <= {(0, "")}


@pytest.fixture(scope="session")
def server(launch) -> Served:
    """The bundled model, served by the command line."""
    return launch("cifar10-resnet18", "--port", "0", "--json")


@pytest.fixture
def limited(launch, tmp_path) -> Served:
    """The same model, slow, behind small limits; its log has a line per explanation that began or ended."""
    served = launch(tmp_path / "log", script=[str(HERE / "serve_slowly.py")])
    served.log = tmp_path / "log"
    return served


@pytest.fixture(scope="session")
def photo() -> bytes:
    return photo_bytes()


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory) -> Path:
    """A synthetic study whose report has files beside it."""
    folder = make_study(tmp_path_factory.mktemp("served") / "study", Recipe(n=200, errors=60, noise=True))
    write_report(Study.load(folder), folder / "report.html", budget=50_000)
    return folder


@pytest.fixture(scope="session")
def study_server(launch, study_folder) -> Served:
    return launch(study_folder, "--port", "0", "--json")
