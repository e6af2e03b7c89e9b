"""Imports: `import whycam` needs torch and numpy only, `--help` needs neither."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIONAL = [
    "PIL",
    "pyarrow",
    "matplotlib",
    "jinja2",
    "pooch",
    "rich",
    "safetensors",
    "pandas",
    "scipy",
    "sklearn",
    "yaml",
]
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(code, blocked=()):
    return subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {list(blocked)!r}\n{BLOCK}\n{code}"], capture_output=True, text=True
    )


def test_the_blocker_blocks():
    for package in OPTIONAL[:5]:
        assert "ModuleNotFoundError" in run(f"import {package}", [package]).stderr


def test_library_needs_torch_and_numpy_alone():
    code = """
import torch, whycam
from whycam.models import resnet18
e = whycam.explain(resnet18(), torch.randn(2, 3, 32, 32), ["layer3[-2]", "layer4[-1]"], ["gradcam", "hirescam"])
print(e.heatmap("gradcam", "layer4[-1]").shape)
for name in whycam.__all__:
    if name != "Study":
        getattr(whycam, name)
"""
    result = run(code, OPTIONAL)
    assert result.stderr == ""
    assert "torch.Size([2, 32, 32])" in result.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["study", "--help"], ["train", "--help"], ["completion", "zsh"]]
)
def test_help_answers_without_torch(arguments):
    code = f"""
from whycam.cli.main import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code
assert "torch" not in sys.modules
"""
    result = run(code, ["torch", "numpy", *OPTIONAL])
    assert result.stderr == ""
    assert "whycam" in result.stdout


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("pyarrow", ["demo", "--out", "{out}"]),
        ("rich", ["evaluate", "cifar10-resnet18", "bundled"]),
        ("PIL", ["evaluate", "cifar10-resnet18", "bundled"]),
        ("matplotlib", ["explain", "cifar10-resnet18", "{image}", "--out", "{out}"]),
        ("jinja2", ["demo", "--out", "{out}"]),
        ("matplotlib", ["demo", "--out", "{out}"]),
    ],
)
def test_missing_extra_is_one_sentence(package, arguments, tmp_path):
    arguments = [argument.format(out=tmp_path / "out", image=tmp_path / "image.png") for argument in arguments]
    result = run(f"from whycam.cli.main import main; sys.exit(main({arguments!r}))", [package])
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "pip install 'whycam[study]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_attribute():
    import whycam

    with pytest.raises(AttributeError, match="module 'whycam' has no attribute 'explian'"):
        _ = whycam.explian
    assert set(whycam.__all__) <= set(dir(whycam))
