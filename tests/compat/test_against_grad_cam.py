"""Side by side with grad-cam itself, and grad-cam's own tests run on these classes; both where it is installed.

grad-cam is no dependency of this project. To run these, install it beside (``pip install grad-cam==1.5.7 psutil``,
with torchvision and OpenCV, which it needs), and for its tests let ``GRAD_CAM_SDIST`` name its source distribution
(``pip download --no-deps --no-binary :all: grad-cam==1.5.7``) or be able to download it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from compat_networks import images, small

from whycam.compat import pytorch_grad_cam as compat

pytestmark = [
    pytest.mark.skipif(find_spec("pytorch_grad_cam") is None, reason="grad-cam itself is not installed"),
    pytest.mark.filterwarnings("ignore"),  # its, not ours
]


def both(name):
    return (
        importlib.import_module(f"{package}.{name}")
        for package in ("pytorch_grad_cam", "whycam.compat.pytorch_grad_cam")
    )


@pytest.mark.parametrize("layers", [["conv2"], ["act2"], ["act", "act2"]], ids="+".join)
@pytest.mark.parametrize(
    "name",
    [
        "AblationCAM", "EigenCAM", "EigenGradCAM", "FEM", "FinerCAM", "FullGrad", "GradCAM", "GradCAMElementWise",
        "GradCAMPlusPlus", "HiResCAM", "KPCA_CAM", "LayerCAM", "RefineCAM", "SESS", "ScoreCAM", "SegEigenCAM",
        "ShapleyCAM", "XGradCAM",
    ],
)  # fmt: skip
def test_maps(name, layers):
    if (name == "ShapleyCAM" and len(layers) > 1) or (name == "AblationCAM" and layers == ["conv2"]):
        pytest.skip("fails there, or depends on the batch size")
    theirs, ours = both("utils.model_targets")
    # In double precision, as a map that is zero but for rounding is scaled up like any other.
    model, x = small().eval().double(), images().double()
    found = []
    for package, targets in ((importlib.import_module("pytorch_grad_cam"), theirs), (compat, ours)):
        cam = getattr(package, name)(model, [model.get_submodule(layer) for layer in layers])
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found.append(cam(input_tensor=x, targets=[targets.ClassifierOutputTarget(k) for k in (0, 3, 1)]))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("colormap", range(22))
def test_colors(colormap):
    theirs, ours = both("utils.image")
    draw = np.random.default_rng(0)
    picture, mask = draw.random((30, 40, 3), dtype=np.float32), draw.random((30, 40), dtype=np.float32)
    for rgb in (False, True):
        expected, actual = (module.show_cam_on_image(picture, mask, rgb, colormap) for module in (theirs, ours))
        np.testing.assert_array_equal(actual, expected)


def test_images():
    theirs, ours = both("utils.image")
    draw = np.random.default_rng(0)
    maps = draw.random((3, 20, 30), dtype=np.float32)
    for size in [(32, 32), (7, 9), (224, 224)]:
        expected, actual = (module.scale_cam_image(maps, size) for module in (theirs, ours))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    for size in [(5, 4, 3), (16, 12, 9), (1, 2, 1)]:
        volumes = draw.random((2, 3, 4, 5), dtype=np.float32)
        expected, actual = (module.scale_cam_image(volumes, size) for module in (theirs, ours))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    concepts, colors = draw.random((4, 20, 30), dtype=np.float32), list(draw.random((4, 3)))
    picture = draw.random((20, 30, 3))
    expected, actual = (
        module.show_factorization_on_image(picture, concepts.copy(), colors).astype(int) for module in (theirs, ours)
    )
    assert np.abs(actual - expected).max() <= 1
    theirs, ours = both("sobel_cam")
    pixels = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ours.sobel_cam(pixels), theirs.sobel_cam(pixels))


def test_road(monkeypatch):
    model = small().eval()
    maps = np.random.default_rng(0).random((3, 12, 16), dtype=np.float32)
    found = []
    for road, targets in zip(both("metrics.road"), both("utils.model_targets"), strict=True):
        defaults = road.NoisyLinearImputer.__init__.__defaults__
        monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0.0, *defaults[1:]))
        wanted = [targets.ClassifierOutputSoftmaxTarget(k) for k in (0, 3, 1)]
        found.append(road.ROADCombined()(images(), maps, wanted, model))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6)


def test_concepts():
    model = small().eval()
    expected, actual = (
        module.DeepFeatureFactorization(model, model.act2, None, model.head)(images(), 3)
        for module in both("feature_factorization.deep_feature_factorization")
    )
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5)


def test_guided_backprop():
    expected, actual = (module.GuidedBackpropReLUModel(small())(images(1), 3) for module in both("guided_backprop"))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


CONFTEST = """
import torch, torchvision
import whycam.compat
whycam.compat.alias("pytorch_grad_cam")
for name in ("resnet18", "vgg11"):
    # Random weights in place of the download.
    def make(*_args, _make=getattr(torchvision.models, name), **_kwargs):
        torch.manual_seed(0)
        return _make(weights=None)
    setattr(torchvision.models, name, make)
"""


@pytest.mark.slow
def test_grad_cams_own_tests_pass(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("psutil")
    archive = os.environ.get("GRAD_CAM_SDIST")
    if archive is None:
        command = [
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "grad-cam==1.5.7",
        ]
        result = subprocess.run([sys.executable, "-m", *command, "--dest", str(tmp_path)], capture_output=True)
        if result.returncode:
            pytest.skip("grad-cam's source distribution cannot be downloaded")
        archive = str(next(tmp_path.glob("*.tar.gz")))
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    folder = next(tmp_path.glob("grad_cam-*/"))
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytorch_grad_cam").rename(folder / "not_this_one")
    (folder / "examples").mkdir(exist_ok=True)
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), (9, 9), 3)
    cv2.imwrite(str(folder / "examples" / "both.png"), smooth)
    source = str(Path(whycam_package()).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def whycam_package():
    return Path(compat.__file__).parent.parent.parent
