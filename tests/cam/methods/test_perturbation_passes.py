"""The passes of methods that run the network again: the images they run; model and memory are unchanged afterwards."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import DeadChannels, InPlace, Residual, count_images, make_network
from references_perturbation import REFERENCES
from torch import nn

import whycam
from whycam.cam import Margin, Probability

FAST = [*sorted(set(REFERENCES) - {"fullgrad", "sscam"}), "sscam(n=3)"]


def test_only_nonconstant_channels_run_and_nothing_before_the_layer():
    torch.manual_seed(0)
    module, images = DeadChannels().double().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    nonconstant = 4 * 4
    # The capture runs the batch once. The tail is tested on two images before and after tracing.
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "scorecam")) == 4 + nonconstant
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "iscam(n=3)")) == 4 + 3 * nonconstant
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "ablationcam")) == 4 + 2
    assert count_images(module.next, lambda: whycam.explain(module, images, "act", "ablationcam")) == 4 + 4 + 5 * 4
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "reciprocam")) == 4 + 2


@pytest.mark.parametrize("target", [None, 2, Probability(1), Margin(3, 1), lambda logits: logits.square().sum(1)])
def test_closed_form_of_ablation_cam_equals_reruns(target):
    module, images = make_network(InPlace)

    def closed_form():
        return whycam.explain(module, images, "act2", "ablationcam", target).map()

    assert count_images(module.conv, closed_form) == 3

    # The same function, written so that its head is not recognized as a mean and a linear layer.
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = copy.deepcopy(module), nn.Identity()

        def forward(self, x):
            return self.out(self.inner(x)) * 1

    doubled = Doubled().eval()
    doubled.inner.head = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 5)).double()
    with torch.no_grad():
        doubled.inner.head[0].weight.copy_(torch.eye(8) * 2)
        doubled.inner.head[1].weight.copy_(module.head.weight / 2)
        doubled.inner.head[1].bias.copy_(module.head.bias)
    reruns = whycam.explain(doubled, images, "inner.act2", "ablationcam", target).map()
    torch.testing.assert_close(closed_form(), reruns, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
def test_model_is_unchanged_also_after_errors(method):
    module, images = make_network(InPlace)
    module.train()
    module.norm.eval()
    module.conv.weight.requires_grad_(False)
    module.head.weight.grad = torch.ones_like(module.head.weight)
    before = snapshot(module)
    whycam.explain(module, images, "norm", method)
    assert_unchanged(module, before)

    # An exception in any pass, from inside the network and from the target.
    small = method if method == "fullgrad" else whycam.cam.resolve_methods(method)[0].using(batch_size=3)
    for fail_at in (1,) if method == "fullgrad" else (1, 2, 3, 5):
        calls = 0

        def fail(*_, fail_at=fail_at):
            nonlocal calls
            calls += 1
            if calls >= fail_at:
                raise ZeroDivisionError

        def target(logits, fail=fail):
            fail()
            return logits[:, 0]

        handle = module.act2.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            whycam.explain(module, images, "norm", small)
        handle.remove()
        assert_unchanged(module, before)

        calls = 0
        with pytest.raises(ZeroDivisionError):
            whycam.explain(module, images, "norm", small, target)
        assert_unchanged(module, before)


def test_number_of_tensors_does_not_grow():
    """As many tensors are alive after many calls as after one."""
    module, images = make_network(Residual)
    methods = [*sorted(set(FAST) - {"sscam(n=3)"}), "fullgrad", "augmented(gradcam)", "eigen(gradcam)"]

    def tensors():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

    counts = []
    for _ in range(4):
        for _ in range(5):
            whycam.explain(module, images, "conv", methods)
        counts.append(tensors())
    assert counts[1] == counts[-1]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
