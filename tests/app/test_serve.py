"""The command line of ``whycam serve``."""

from __future__ import annotations

import subprocess
import sys

from whycam.cli.main import main


def test_taken_port_is_one_sentence(server):
    command = [sys.executable, "-m", "whycam", "serve", "cifar10-resnet18", "--port", str(server.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("whycam: error: ")
    assert "choose another --host or --port" in line


def test_mistakes_are_one_sentence(tmp_path, study_folder, capfd):
    bundled = "cifar10-resnet18"
    expected = {
        (bundled, "--host", "203.0.113.1"): "cannot listen on 203.0.113.1",
        (bundled, "--port", 70000): "port 70000 (a port is 0 to 65535)",
        (tmp_path / "nothing", "--port", 0): "no such checkpoint",
        (bundled, "--port", 0, "--allow-frame", "https://a; x"): "give an origin",
        (bundled, "--port", 0, "--checkpoint", bundled): "no study folder",
        (study_folder, "--port", 0, "--checkpoint", bundled): "weights differ",
        (bundled, "--port", 0, "--layers", "layer7"): "unknown layer",
    }
    for arguments, part in expected.items():
        assert main(["serve", *map(str, arguments)]) == 2
        out, error = capfd.readouterr()
        assert out == ""
        (line,) = error.strip().splitlines()
        assert line.startswith("whycam: error: ")
        assert part in line


def test_missing_extra_is_named():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Blocker())
from whycam.cli.main import main
sys.exit(main(["serve", "cifar10-resnet18"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "pip install 'whycam[app]'" in result.stderr
