"""Networks with wrapped, compiled, scripted or exported parts: the right layer is found, or a clear error is raised."""

from __future__ import annotations

import pytest
import torch
from model_state import assert_unchanged, snapshot
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import resolve_layer
from whycam.cam.methods.fullgrad import full_gradients
from whycam.compat.pytorch_grad_cam import GradCAM

METHODS = ["gradcam", "shapleycam", "ablationcam", "fullgrad", "guidedbackprop", "noisy(gradcam, n=2)", "eigencam"]


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.conv2(self.net(x))).mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Parts().eval(), torch.randn(2, 3, 6, 6)


def child_compiled(model):
    model.net = torch.compile(model.net, backend="eager")


def child_compiled_in_place(model):
    model.net.compile(backend="eager")


def child_compiled_by_its_forward(model):
    model.net.forward = torch.compile(model.net.forward, backend="eager")


def all_compiled_in_place(model):
    model.compile(backend="eager")


def child_parallel(model):
    model.net = nn.DataParallel(model.net)


def child_parallel_and_compiled(model):
    model.net = torch.compile(nn.DataParallel(model.net), backend="eager")


@pytest.fixture(scope="module")
def expected():
    model, images = make()
    return {layer: whycam.explain(model, images, layer, METHODS, [0, 2]).maps for layer in ("net[0]", "net[-2]", "net")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
@pytest.mark.parametrize(
    "wrap",
    [
        child_compiled, child_compiled_in_place, child_compiled_by_its_forward, all_compiled_in_place, child_parallel,
        child_parallel_and_compiled,
    ],
)  # fmt: skip
def test_layers_inside_wrapped_and_compiled_parts(wrap, expected):
    model, images = make()
    convolution = model.net[0]
    wrap(model)
    with torch.no_grad():
        answer = model(images)  # compiled before any hook is registered
    before, forward = snapshot(model), vars(model.net).get("forward")
    for layer, maps in expected.items():
        explained = whycam.explain(model, images, layer, METHODS, [0, 2])
        assert explained.layers[0] == layer
        for key, raw in explained.maps.items():
            torch.testing.assert_close(raw, maps[key], rtol=1e-4, atol=1e-6, msg=f"{wrap.__name__} {key}")
    for written in ("net[0]", "net.0", convolution):
        found = resolve_layer(model, written)
        assert found.module is convolution
        assert model.get_submodule(found.path) is convolution
        assert resolve_layer(model, found.path).module is convolution
    with pytest.raises(WhycamError, match=r"unknown layer 'net\[4\]'"):
        resolve_layer(model, "net[4]")
    assert_unchanged(model, before)
    assert vars(model.net).get("forward") is forward
    with torch.no_grad():
        torch.testing.assert_close(model(images), answer)
    assert GradCAM(model, [convolution])(images).any()
    # The layer's path may have a wrapper's name in it.
    fields = [info.receptive_field for info in whycam.cam.inspect_layers(model, images) if info.path.endswith("0")]
    assert fields == [(3, 3)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_layers_and_methods_that_need_a_scripted_part_are_refused(kind):
    model, images = make()
    plain, _ = make()
    traced = kind == "traced"
    model.net = torch.jit.trace(model.net, images) if traced else torch.jit.script(model.net)
    inside = next(model.net.children())
    for layer in ("net[0]", "net.2", inside, *([] if traced else ["net", model.net])):
        with pytest.raises(
            WhycamError, match=r"is part of a TorchScript or torch.export program, which cannot be inspected"
        ):
            whycam.explain(model, images, layer, "gradcam")
        if not isinstance(layer, str):
            with pytest.raises(WhycamError, match=r"is part of a TorchScript|did not run"):
                GradCAM(model, [layer])(images)
    with pytest.raises(WhycamError, match="FullGrad needs every bias of the model, and 'net' is a TorchScript"):
        whycam.explain(model, images, "conv2", "fullgrad")
    with pytest.raises(WhycamError, match="FullGrad needs every bias"):
        full_gradients(model, images)
    with pytest.raises(WhycamError, match="needs every ReLU of the model, and 'net' is a TorchScript"):
        whycam.explain(model, images, methods="guidedbackprop")
    # All other methods work.
    methods = [method for method in METHODS if method not in ("fullgrad", "guidedbackprop")]
    one, other = (whycam.explain(network, images, None, methods, 1) for network in (plain, model))
    assert one.layers == other.layers == ("act",)
    for key, raw in one.maps.items():
        torch.testing.assert_close(other.maps[key], raw, rtol=1e-4, atol=1e-6, msg=str(key))
    assert len(whycam.summarize(model, (3, 6, 6)).rows) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_layers_inside_an_exported_part_are_refused():
    model, images = make()
    plain, _ = make()
    model.net = torch.export.export(model.net, (images,)).module()
    with pytest.raises(
        WhycamError, match=r"'net.0' is part of a TorchScript or torch.export program, which cannot be inspected"
    ):
        whycam.explain(model, images, "net.0", "gradcam")
    with pytest.raises(
        WhycamError, match="FullGrad needs every bias of the model, and 'net' is a TorchScript or exported"
    ):
        whycam.explain(model, images, "conv2", "fullgrad")
    for layer in ("net", "conv2"):
        one, other = (whycam.explain(network, images, layer, "gradcam", 1).map() for network in (plain, model))
        torch.testing.assert_close(one, other)
