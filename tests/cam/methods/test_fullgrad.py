"""FullGrad: the contributions sum to the score, and the map equals its reference."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import Branches, Dense, InPlace, Residual, Reused, TupleOutput, count_images, make_network
from references_perturbation import REFERENCES
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import whycam
from whycam.cam import METHODS, Margin
from whycam.cam.methods.fullgrad import bias_of, full_gradients


class EveryAffineLayer(nn.Module):
    """All kinds of biases, in-place ReLUs directly behind BatchNorm, grouped, strided and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, groups=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.group = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.BatchNorm2d(8, affine=False))
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.pool = nn.MaxPool2d(2)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.group(x)
        y += x
        y = self.pool(F.leaky_relu_(self.up(F.relu_(y)), 0.1))
        y = self.mix(y.permute(0, 2, 3, 1)).relu_()
        return self.head(self.norm(y.mean((1, 2))))


@pytest.mark.parametrize("kind", [InPlace, Reused, TupleOutput, Residual, Dense, EveryAffineLayer])
def test_contributions_sum_to_the_score(kind):
    module, images = make_network(kind, size=10)
    if kind is InPlace:
        module.act.inplace = True
    before = snapshot(module)
    for target in (None, [0, 1, 2], Margin(1, 4)):
        parts = full_gradients(module, images, target)
        torch.testing.assert_close(parts.total, parts.scores, rtol=0, atol=1e-10)
    assert_unchanged(module, before)


def test_contributions_in_the_bundled_network(loaded, batch):
    double, images = copy.deepcopy(loaded[0]).double(), batch[:2].double()
    parts = full_gradients(double, images, [3, 5])
    torch.testing.assert_close(parts.total, parts.scores, rtol=0, atol=1e-10)
    names = [name for name, _ in parts.biases]
    assert names[0] == "bn1"
    assert names[-1] == "linear"
    assert len(names) == 21
    # Every contribution matters: without it the sum would differ.
    for _, part in parts.biases:
        assert float(part.flatten(1).sum(1).abs().min()) > 1e-9


def test_module_that_runs_twice_is_listed_twice():
    module, images = make_network(Reused)
    parts = full_gradients(module, images, 1)
    assert [name for name, _ in parts.biases] == ["stem", "shared", "shared", "head"]


def test_networks_that_are_not_piecewise_linear():
    """A gate is a product of activations, so the sum of the contributions differs from the score."""
    for kind in (Branches,):
        module, images = make_network(kind)
        parts = full_gradients(module, images)
        assert not torch.allclose(parts.total, parts.scores)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 2, 1, bias=False), None),
        (nn.ReLU(), None),
        (nn.BatchNorm2d(2, affine=False), [0.0, 0.0]),
        (nn.BatchNorm2d(2, affine=False, track_running_stats=False), None),
        (nn.LayerNorm(2), [0.0, 0.0]),
        (nn.LayerNorm([2, 3]), None),
        (nn.GroupNorm(1, 2), [0.0, 0.0]),
        (nn.LayerNorm(2, elementwise_affine=False), None),
    ],
)
def test_bias_of_modules(module, expected):
    found = bias_of(module)
    assert (None if found is None else found.tolist()) == expected


def test_implicit_bias_of_batch_norm():
    norm = nn.BatchNorm2d(4).eval()
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.normal_()
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        torch.testing.assert_close(bias_of(norm), norm(torch.zeros(1, 4, 1, 1))[0, :, 0, 0])


@pytest.mark.parametrize("kind", [InPlace, Reused, Residual, Dense])
def test_map_equals_its_reference(kind):
    module, images = make_network(kind)
    explained = whycam.explain(module, images, "0" if kind is nn.Sequential else None, "fullgrad", [0, 3, 4])
    assert explained.layers == ("input",)
    for index, class_index in enumerate([0, 3, 4]):
        expected = REFERENCES["fullgrad"](module, images[index], None, class_index)
        np.testing.assert_allclose(explained.map()[index].numpy(), expected, rtol=0, atol=1e-11)


def test_map_of_the_bundled_network(loaded, batch):
    double, images = copy.deepcopy(loaded[0]).double(), batch[:1].double()
    actual = whycam.explain(double, images, "layer4[-1]", "fullgrad", 3).map()[0].numpy()
    expected = REFERENCES["fullgrad"](double, images[0], None, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * expected.max())


def test_memory_layout_does_not_matter(model, batch):
    plain = whycam.explain(model, batch, "layer4[-1]", "fullgrad").map()
    last = whycam.explain(model, batch.contiguous(memory_format=torch.channels_last), "layer4[-1]", "fullgrad").map()
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-3)


def test_no_gradients_are_left_after_a_call():
    module, images = make_network(Residual)
    outputs = []
    handle = module.conv.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    whycam.explain(module, images, "conv", "fullgrad")
    handle.remove()
    assert images.grad is None
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())


def test_one_forward_pass_for_several_methods_and_targets():
    module, images = make_network(Residual)
    methods = ["fullgrad", "gradcam", "shapleycam", "hirescam"]
    targets = {"a": None, "b": 3, "c": Margin(1, 2)}
    together = None

    def run():
        nonlocal together
        together = whycam.explain(module, images, ["conv", "stem"], methods, targets)

    assert count_images(module.conv, run) == len(images)
    for name, target in targets.items():
        for method in methods:
            alone = whycam.explain(module, images, ["conv", "stem"], method, target)
            for (_, layer, _), raw in alone.maps.items():
                torch.testing.assert_close(together.map(method, layer, name), raw, rtol=0, atol=1e-12)


def test_map_without_the_kept_graph():
    module, images = make_network(InPlace)
    plain = dataclasses.replace(METHODS["fullgrad"], name="plain", needs=frozenset({"reruns"}))
    one, two = (whycam.explain(module, images, "norm", method, 2).map() for method in ("fullgrad", plain))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


class Checkpointed(Residual):
    def forward(self, x):
        x = self.stem(x)
        y = checkpoint(lambda z: self.act(self.conv(z) + z), x, use_reentrant=False)
        return self.head(y.mean((2, 3)))


def test_gradient_checkpointing():
    module, images = make_network(Checkpointed)
    parts = full_gradients(module, images, 1)
    torch.testing.assert_close(parts.total, parts.scores, rtol=0, atol=1e-10)
    plain = Residual().double().eval()
    plain.load_state_dict(module.state_dict())
    one, two = (whycam.explain(m, images, "conv", ["fullgrad", "gradcam"], [0, 3, 4]) for m in (module, plain))
    for key, raw in one.maps.items():
        torch.testing.assert_close(raw, two.maps[key], rtol=0, atol=1e-12)


def test_the_graph_is_freed():
    module, images = make_network(Residual)
    alive = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.marker = LifetimeMarker()
            alive.append(weakref.ref(context.marker))
            return x.clone()

        @staticmethod
        def backward(_context, gradient):
            return gradient

    handle = module.conv.register_forward_hook(lambda _m, _i, out: Watched.apply(out))
    explained = whycam.explain(module, images, "conv", "fullgrad")
    handle.remove()
    gc.collect()
    assert explained.map().isfinite().all()
    assert all(reference() is None for reference in alive)


class LifetimeMarker:
    """An object that weak references can refer to."""


# At one of these sizes a map has as many rows as channels, so its shape does not show the channel axis.
@pytest.mark.parametrize("size", [32, 48])
def test_layer_norms_of_channels_first_maps(size):
    """Every bias is multiplied along its own axis: the sums equal bias times autograd's gradient of the bias."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=[16, 8, 4, 2], depths=[1] * 4, num_labels=5, patch_size=2)
    torch.manual_seed(0)
    module = transformers.ConvNextForImageClassification(config).double().eval()
    for parameter in module.parameters():
        parameter.data.normal_(std=0.5)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    parts = full_gradients(module, images, 1)
    biases = {name: norm.bias for name, norm in module.named_modules() if getattr(norm, "bias", None) is not None}
    gradients = torch.autograd.grad(module(images).logits[:, 1].sum(), list(biases.values()))
    expected = {name: (bias * grad).sum() for (name, bias), grad in zip(biases.items(), gradients, strict=True)}
    assert {name for name, _ in parts.biases} == set(expected)
    for name, part in parts.biases:
        torch.testing.assert_close(part.sum(), expected[name].detach(), rtol=1e-9, atol=1e-12, msg=name)
    assert whycam.explain(module, images, methods="fullgrad", targets=1).map().isfinite().all()
