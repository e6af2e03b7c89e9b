"""Every name that grad-cam 1.5.7 offers is there, under its own package's name too."""

from __future__ import annotations

import subprocess
import sys

import pytest
from compat_names import LINES, absent

import whycam.compat
from whycam import WhycamError


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_every_public_name_is_there(line):
    assert absent(line) == []


def test_the_list_is_whole():
    assert len(LINES) > 140
    assert sum(len(line) == 2 and line[0] == "pytorch_grad_cam" for line in LINES) == 26


CODE = """
import sys
import whycam.compat
whycam.compat.alias("pytorch_grad_cam")
whycam.compat.alias("pytorch_grad_cam")
import numpy as np, torch
from pytorch_grad_cam import GradCAM, HiResCAM, BaseCAM
from pytorch_grad_cam.base_cam import BaseCAM as Same
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.image import show_cam_on_image
import pytorch_grad_cam.metrics.road as road
assert BaseCAM is Same and issubclass(GradCAM, Same) and road.ROADCombined
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
with GradCAM(model=model, target_layers=[model[0]]) as cam:
    grayscale = cam(input_tensor=torch.randn(2, 3, 10, 12), targets=[ClassifierOutputTarget(1)] * 2)
print(grayscale.shape, show_cam_on_image(np.full((10, 12, 3), 0.5), grayscale[0], use_rgb=True).dtype)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"cv2", "sklearn", "scipy", "matplotlib", "PIL", "torchvision", "ttach"}, loaded
"""


def test_existing_code_runs_unchanged_on_torch_and_numpy_alone():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout.split() == ["(2,", "10,", "12)", "uint8"]


def test_alias_says_what_it_cannot_do(monkeypatch):
    with pytest.raises(WhycamError, match="no compatible version of 'captum' is offered; there is pytorch_grad_cam"):
        whycam.compat.alias("captum")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", sys)
    with pytest.raises(WhycamError, match=r"has been imported already: call whycam\.compat\.alias"):
        whycam.compat.alias("pytorch_grad_cam")
