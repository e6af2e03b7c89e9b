"""Methods that need more than one layer's activations and gradients: float64 references and identities."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import InPlace
from references_beyond_one_layer import REFERENCES as BEYOND_ONE_LAYER

import whycam
from whycam.cam import METHODS, resolve_layer

STAGES = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]
# The reference uses finite differences.
PRECISION = {"shapleycam": 1e-6}


@pytest.fixture(scope="module")
def double(loaded):
    return copy.deepcopy(loaded[0]).double()


@pytest.mark.parametrize("method", sorted(BEYOND_ONE_LAYER))
def test_method_equals_its_float64_reference(double, batch, method):
    image, class_index = batch[2].double(), 3
    layers = ["layer4[-1]"] if method == "cam" else STAGES
    explained = whycam.explain(double, image[None], layers, method, class_index)
    scope = METHODS[method].scope
    name = {"input": "input", "layers": "+".join(layers), "layer": layers[0]}[scope]
    modules = [resolve_layer(double, layer).module for layer in layers]
    expected = BEYOND_ONE_LAYER[method](double, image, modules, class_index)
    actual = explained.map(method, name)[0].numpy()
    bound = PRECISION.get(method, 1e-10) * max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("method", sorted(BEYOND_ONE_LAYER))
def test_batch_equals_single_images(batch, method):
    torch.manual_seed(0)
    small, images, layers = InPlace().double(), batch[:3].double(), ["act2"]
    targets = torch.tensor([1, 4, 2])
    together = whycam.explain(small, images, layers, method, targets)
    for index in range(3):
        alone = whycam.explain(small, images[index : index + 1], layers, method, targets[index : index + 1])
        for key, raw in alone.maps.items():
            torch.testing.assert_close(together.maps[key][index], raw[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["random", "smoothgrad", "smoothgradcam++"])
def test_random_draws_depend_on_the_seed_alone(model, batch, method):
    torch.manual_seed(1)
    one = whycam.explain(model, batch[:2], "layer3[-2]", method, seed=7).map()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = whycam.explain(model, batch[:2], "layer3[-2]", method, seed=7).map()
    assert torch.equal(before, torch.random.get_rng_state())
    other = whycam.explain(model, batch[:2], "layer3[-2]", method, seed=8).map()
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_integrated_gradients_sum_to_the_change_of_the_score(batch):
    torch.manual_seed(0)
    small, images = InPlace().double().eval(), batch[:3].double()
    explained = whycam.explain(small, images, "act2", "integratedgradients(steps=400)", torch.tensor([1, 4, 2]))
    with torch.no_grad():
        baseline = small(torch.zeros_like(images))[torch.arange(3), [1, 4, 2]]
    change = explained.scores["target"] - baseline
    assert change.abs().min() > 5e-3
    torch.testing.assert_close(explained.map().sum((1, 2)), change, rtol=1e-3, atol=1e-5)


def test_cam_without_a_pooled_linear_head_is_refused(model, batch):
    with pytest.raises(whycam.WhycamError, match=r"CAM needs a layer that is followed by a mean .*'layer3\[-2\]'"):
        whycam.explain(model, batch, "layer3[-2]", "cam")


def test_cam_plus_bias_is_the_logit(double, batch):
    explained = whycam.explain(double, batch.double(), "layer4[-1]", ["cam", "gradcam"], 4)
    mean = explained.map("cam").mean((1, 2)) + double.linear.bias[4].detach()
    torch.testing.assert_close(mean, explained.logits[:, 4], rtol=0, atol=1e-11)
    torch.testing.assert_close(explained.map("cam"), 16 * explained.map("gradcam"), rtol=1e-12, atol=1e-12)


def test_shapley_cam_of_a_margin_is_grad_cam_at_the_last_layer(double, batch):
    """Behind the last layer the network is linear, so the second derivatives of a margin are 0."""
    margin = whycam.Margin(3, 5)
    explained = whycam.explain(double, batch.double(), "layer4[-1]", ["shapleycam", "gradcam"], margin)
    torch.testing.assert_close(explained.map("shapleycam"), explained.map("gradcam"), rtol=0, atol=1e-12)


def test_finer_cam_needs_a_class(model, batch):
    with pytest.raises(whycam.WhycamError, match="give a class as the target"):
        whycam.explain(model, batch, "layer4[-1]", "finercam", whycam.Margin(1, 2))


def test_guided_backprop_does_not_change_relus_afterwards(model, batch):
    before = whycam.explain(model, batch, "layer4[-1]", "inputgradient").map()
    whycam.explain(model, batch, "layer4[-1]", "guidedbackprop")
    assert torch.equal(before, whycam.explain(model, batch, "layer4[-1]", "inputgradient").map())


def test_refine_cam_is_zero_if_one_layer_is_zero(batch):
    class Dead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.two = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.head = torch.nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.two(self.one(x).relu() * 0).mean((2, 3)))

    torch.manual_seed(0)
    explained = whycam.explain(Dead(), batch, ["one", "two"], "refinecam", 0)
    assert bool((explained.map() == 0).all())
    assert set(explained.flags[("refinecam", "one+two", "target")]) == {("all-zero",)}
