"""The environment of passes: entered once, and entered again by passes that run outside of the explanation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whycam
from whycam.cam.methods.registry import Method
from whycam.cam.passes.environment import explaining
from whycam.nn_utils import instrumented


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    return model, torch.randn(2, 3, 8, 8)


def keeping(kept: list) -> Method:
    """A method that keeps its trace, so that it can ask for passes after the explanation is made."""

    def function(trace):
        kept.append(trace)
        return trace.activations.sum(dim=1)

    return Method("keeping", "Keeping", "", "", function, frozenset({"reruns"}))


def test_a_pass_after_the_explanation_runs_in_eval_mode_and_leaves_the_model_as_it_was():
    model, images = small()
    expected = model.eval()(images)[:, 1].detach()
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept: list = []
    whycam.explain(model, images, "2", keeping(kept), 1)
    trace = kept[0]
    rows = torch.arange(2)
    torch.testing.assert_close(trace.network.score_images(images, rows, trace.target).scores, expected)
    perturbed = trace.network.trace_perturbed("twice", lambda x: 2 * x, "2", trace.target)
    torch.testing.assert_close(perturbed.scores, model.eval()(2 * images)[:, 1].detach())
    model.train()
    assert trace.network.image_gradient(images, rows, trace.target).any()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    assert all(module.training for module in model.modules())


def test_a_method_may_ask_for_passes_under_inference_mode():
    model, images = small()
    model.eval()

    def function(trace):
        with torch.inference_mode():
            gradient = trace.network.image_gradient(trace.network.images, torch.arange(2), trace.target)
            perturbed = trace.network.trace_perturbed("same", lambda x: x + 0, trace.layer, trace.target)
        return perturbed.activations.sum(dim=1) + 0 * gradient.sum()

    method = Method("inferring", "Inferring", "", "", function, frozenset({"reruns"}))
    found = whycam.explain(model, images, "2", method, 1).map()
    torch.testing.assert_close(found, model[:3](images).sum(dim=1).detach())


def test_a_forward_that_switches_to_train_mode_is_explained_in_eval_mode():
    class Switching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()[0]

        def forward(self, x):
            found = self.net(x)
            self.train()
            return found

    model, images = Switching().eval(), small()[1]
    expected = whycam.explain(model.net.eval(), images, "2", ["gradcam", "augmented(gradcam)"], 1)
    model.eval()
    found = whycam.explain(model, images, "net.2", ["gradcam", "augmented(gradcam)"], 1)
    for method in expected.methods:
        torch.testing.assert_close(found.map(method), expected.map(method))


def test_a_layout_of_none_in_a_mapping_is_detected():
    model, images = small()
    expected = whycam.explain(model.eval(), images, "2").map()
    assert torch.equal(whycam.explain(model, images, "2", layout={"2": None}).map(), expected)


def test_entering_again_costs_no_walk_over_the_weights(monkeypatch):
    model, _ = small()
    walks = []

    def counted(network):
        walks.append(network)
        return instrumented(network)

    monkeypatch.setattr("whycam.cam.passes.environment.instrumented", counted)
    with explaining(model), explaining(model):
        assert not model.training
        with torch.inference_mode(), explaining(model):
            assert not torch.is_inference_mode_enabled()
    assert len(walks) == 2
    assert model.training
    with pytest.raises(ZeroDivisionError), explaining(model):
        raise ZeroDivisionError
    with explaining(model):
        pass
    assert len(walks) == 4
