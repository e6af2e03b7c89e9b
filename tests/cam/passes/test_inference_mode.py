"""Tensors made under `torch.inference_mode`, which autograd refuses: in the batch, in the model, in targets."""

from __future__ import annotations

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import InPlace
from torch import nn

import whycam
from whycam.cam import METHODS, Margin, Similarity
from whycam.cam.inspect import inspect_layers
from whycam.cam.methods.fullgrad import full_gradients

FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip
EVERY = [FEW.get(name, name) for name in METHODS]
EVERY += [f"{combinator}({inner})" for combinator in ("noisy", "augmented") for inner in ("gradcam", "fullgrad")]
EVERY += ["eigen(gradcam)", "eigen(scorecam)", "noisy(scorecam, n=2)", "augmented(guidedbackprop)",
          "noisy(augmented(shapleycam), n=2)"]  # fmt: skip


def network():
    torch.manual_seed(0)
    return InPlace().double().eval()


def batch():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def explained(model, images, targets):
    return whycam.explain(model, images, "act2", EVERY, targets).maps


@pytest.fixture(scope="module")
def expected():
    return explained(network(), batch(), {"list": [0, 2]})


def assert_same(maps, expected):
    assert maps.keys() == expected.keys()
    for key, raw in expected.items():
        torch.testing.assert_close(maps[key], raw, rtol=0, atol=1e-12, msg=str(key))
        assert not maps[key].requires_grad


@pytest.mark.parametrize("batch_made_inside", [False, True])
def test_every_method_under_inference_mode(expected, batch_made_inside):
    model, images = network(), batch()
    with torch.inference_mode():
        batch_images = images.clone() if batch_made_inside else images
        targets = torch.tensor([0, 2]) if batch_made_inside else [0, 2]
        assert batch_images.is_inference() == batch_made_inside
        assert_same(explained(model, batch_images, {"list": targets}), expected)
    assert torch.equal(batch_images, images)


def test_every_method_on_a_model_made_under_inference_mode(expected):
    with torch.inference_mode():
        model = network()
    assert model.norm.running_mean.is_inference()
    before = snapshot(model)
    assert_same(explained(model, batch(), {"list": [0, 2]}), expected)
    assert_unchanged(model, before)
    assert all(tensor.is_inference() for tensor in model.state_dict().values())
    with pytest.raises(whycam.WhycamError, match="target class 9"):
        whycam.explain(model, batch(), "conv", targets=9)
    assert_unchanged(model, before)
    # Other functions with backward passes: inspect_layers, full_gradients, differentiable maps.
    assert [info.receptive_field for info in inspect_layers(model, batch())] == [
        info.receptive_field for info in inspect_layers(network(), batch())
    ]
    assert whycam.explain(model, batch()).layers == whycam.explain(network(), batch()).layers
    torch.testing.assert_close(full_gradients(model, batch(), 1).total, full_gradients(network(), batch(), 1).total)
    images = batch().requires_grad_()
    whycam.explain(model, images, "conv", differentiable=True).map().sum().backward()
    assert bool(images.grad.any())


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    ordinary, made = Tied(), None
    with torch.inference_mode():
        made = Tied()
        made.load_state_dict(ordinary.state_dict())
    images = batch().float()
    one, other = (whycam.explain(model, images, "one", ["gradcam", "inputgradient"], 1) for model in (ordinary, made))
    for key, raw in one.maps.items():
        torch.testing.assert_close(other.maps[key], raw)
    assert made.two.weight is made.one.weight


def test_targets_made_under_inference_mode():
    model, images = network(), batch()
    a, b = torch.tensor([0, 2]), torch.tensor([1, 1])
    expected = whycam.explain(model, images, "conv", "noisy(gradcam, n=2)", Margin(a, b)).map()
    with torch.inference_mode():
        target = Margin(a.clone(), b.clone())
    assert target.a.is_inference()
    torch.testing.assert_close(whycam.explain(model, images, "conv", "noisy(gradcam, n=2)", target).map(), expected)
    embedding = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = whycam.explain(model, images, "conv", "noisy(gradcam, n=2)", Similarity(embedding)).map()
    with torch.inference_mode():
        target, both = Similarity(embedding.clone()), [Similarity(row.clone()) for row in embedding]
    assert target.embedding.is_inference()
    for targets in (target, both):
        actual = whycam.explain(model, images, "conv", "noisy(gradcam, n=2)", targets).map()
        torch.testing.assert_close(actual, expected)


def test_hidden_inference_tensors_are_one_sentence():
    model, images = network(), batch()
    with torch.inference_mode():
        weights = torch.randn(5, dtype=torch.float64)

    def target(logits):
        return (logits * weights).sum(1)

    for method in ("gradcam", "inputgradient"):
        with pytest.raises(whycam.WhycamError, match=r"made under torch.inference_mode and is no parameter"):
            whycam.explain(model, images, "conv", method, target)
    assert whycam.explain(model, images, "conv", "ablationcam", target).map().isfinite().all()
