"""The table of classes: whole, and each row an ordinary class in the place where grad-cam has it."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from compat_names import CONSTRUCTORS, LINES, absent, parameters, rows, unlisted
from compat_networks import ALL, classes, images, small

from whycam.compat import pytorch_grad_cam as compat

LINE = ["pytorch_grad_cam.grad_cam", "GradCAM", "get_cam_weights"]
# grad-cam has these two defaults otherwise: one object for all instances, and none for layers that are not used.
# The seed is new.
OTHERWISE = {"ablation_layer=…": "ablation_layer=None", "FullGrad target_layers": "target_layers=…"}
ADDED = {"NoisyLinearImputer": ["seed=0"]}


def test_every_class_is_one_of_grad_cams():
    assert len(rows()) == 16
    assert unlisted(LINES) == []


def test_a_class_that_grad_cam_does_not_have_is_found():
    assert LINE in LINES
    place = (f"whycam.compat.{LINE[0]}", LINE[1])
    assert unlisted([line for line in LINES if line != LINE]) == [place]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_missing_entry_is_found(line, monkeypatch):
    if len(line) == 1:
        monkeypatch.setitem(sys.modules, f"whycam.compat.{line[0]}", None)
    else:
        monkeypatch.delattr(f"whycam.compat.{line[0]}.{line[1]}")
    assert absent(line) == line[:2]


def test_a_missing_method_is_found(monkeypatch):
    monkeypatch.setattr(compat.GradCAM, "get_cam_weights", None)
    assert absent(LINE) == ["get_cam_weights"]


@pytest.mark.parametrize("cls", rows(), ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}")
def test_a_row_is_an_ordinary_class(cls):
    assert getattr(importlib.import_module(cls.__module__), cls.__name__) is cls
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.__doc__
    assert cls.__mro__[-3:-1] == compat.BaseCAM.__mro__[:-1]
    assert ("get_cam_weights" in vars(cls)) != ("get_cam_image" in vars(cls))


@pytest.mark.parametrize("line", CONSTRUCTORS, ids=lambda line: ".".join(line[:2]))
def test_constructors_take_what_grad_cams_take(line):
    module, name, *expected = line
    actual = parameters(getattr(importlib.import_module(f"whycam.compat.{module}"), name))
    expected = [OTHERWISE.get(one, OTHERWISE.get(f"{name} {one}", one)) for one in expected]
    assert actual == expected + ADDED.get(name, [])


def test_every_class_has_its_constructor_checked():
    checked = {(f"whycam.compat.{module}", name) for module, name, *_ in CONSTRUCTORS}
    assert {(cls.__module__, cls.__name__) for cls in rows()} <= checked
    assert {getattr(compat, name).__module__ for name in ALL} <= {module for module, _ in checked}


@pytest.mark.parametrize("name", ALL)
def test_an_instance_survives_pickling(name):
    model = small().eval()
    cam = getattr(compat, name)(model, [model.conv2])
    maps = cam(images(), classes(0, 3, 1))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cam))(images(), classes(0, 3, 1)), maps)


class Mine(compat.EigenCAM):
    """A user's subclass of a row."""


def test_a_users_subclass_is_no_row_and_inherits_everything():
    assert Mine.__module__ == __name__
    assert Mine not in rows()
    model = small().eval()
    cam = Mine(model, [model.conv2])
    assert not cam.uses_gradients
    np.testing.assert_array_equal(cam(images(), None), compat.EigenCAM(model, [model.conv2])(images(), None))


def test_modules_are_attributes_of_the_package_once_it_is_imported():
    paths = sorted({cls.__module__.rpartition(".")[2] for cls in rows()} - {"ablation_cam_multilayer"})
    code = f"import whycam.compat.pytorch_grad_cam as p\nfor path in {paths}: getattr(p, path)"
    subprocess.run([sys.executable, "-c", code], check=True)
