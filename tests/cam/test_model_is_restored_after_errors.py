"""An error during any pass leaves the model and torch's modes as they were; many calls leave no tensors behind."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from detectors import ListOfDicts
from model_state import assert_unchanged, snapshot
from networks import InPlace, Residual, Transformer, make_network
from torch import nn
from torch.overrides import _len_torch_function_stack

import whycam
from whycam.cam.passes.graph_split import _TRACING

RERUNNING = ["ablationcam", "reciprocam", "scorecam", "sscam(n=2)", "iscam(n=2)", "groupcam(groups=2)", "fullgrad",
             "inputgradient", "guidedgradcam", "guidedbackprop", "smoothgrad(n=2)", "smoothgradcam++(n=2)",
             "augmented(gradcam)", "noisy(shapleycam, n=2)", "augmented(ablationcam)", "noisy(scorecam, n=2)",
             "eigen(scorecam)", "noisy(augmented(fem), n=2)"]  # fmt: skip


class InjectedError(Exception):
    pass


class FailsAfter(nn.Module):
    """Returns its input, and raises at a chosen call."""

    def __init__(self):
        super().__init__()
        self.calls_left = -1

    def forward(self, x):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise InjectedError
        return x


class FailingNetwork(nn.Module):
    """Can fail before the layer, behind it, and in a user's hook on the layer."""

    def __init__(self):
        super().__init__()
        self.before, self.behind, self.hook = FailsAfter(), FailsAfter(), FailsAfter()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.layer.register_forward_hook(lambda _m, _i, out: self.hook(out))

    def forward(self, x):
        y = self.layer(self.stem(self.before(x)))
        return self.head(self.last(self.behind(self.act(y))).tanh().mean((2, 3)))


def torch_state():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        _len_torch_function_stack(), _TRACING.locked(), torch.get_rng_state().sum().item(),
    )  # fmt: skip


@pytest.mark.parametrize("place", ["before", "behind", "hook"])
@pytest.mark.parametrize("method", RERUNNING)
def test_error_in_any_pass_restores_everything(method, place):
    torch.manual_seed(0)
    model, images = FailingNetwork(), torch.randn(2, 3, 6, 6)
    model.train()
    model.last.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    failing = getattr(model, place)
    expected = whycam.explain(model, images, "layer", method, 1).map()
    passes = -1 - failing.calls_left
    kept = images.clone()
    before, modes = snapshot(model), torch_state()
    assert passes >= 1
    raised = 0
    for count in sorted({1, 2, 3, passes // 2, passes - 1, passes} & set(range(1, passes + 1))):
        failing.calls_left = count
        try:
            actual = whycam.explain(model, images, "layer", method, 1).map()
        except InjectedError:
            raised += 1
        else:
            # No error reaches the user if the test run of the traced tail fails: then the whole network runs instead.
            assert place == "behind"
            torch.testing.assert_close(actual, expected)
        assert_unchanged(model, before)
        assert torch_state() == modes
        assert torch.equal(images, kept)
    assert raised
    failing.calls_left = -1
    assert torch.equal(whycam.explain(model, images, "layer", method, 1).map(), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("method", ["ablationcam", "scorecam", "noisy(ablationcam, n=2)", "inputgradient"])
def test_error_in_a_target_restores_everything(method, count):
    model, images = make_network(InPlace)
    model.train()
    calls = 0

    def target(logits):
        nonlocal calls
        calls += 1
        if calls == count:
            raise InjectedError
        return logits[:, 0]

    before, modes = snapshot(model), torch_state()
    try:
        whycam.explain(model, images, "norm", method, target)
    except InjectedError:
        pass
    else:
        assert calls < count
    assert_unchanged(model, before)
    assert torch_state() == modes


CALLS = 15


@pytest.mark.parametrize("network", ["residual", "tokens", "detector"])
def test_many_calls_of_rerunning_methods_leave_no_tensors(network):
    """Like test_2000_calls_leave_nothing_behind, with fewer calls, because these methods take ten times as long."""
    torch.manual_seed(0)
    methods = [
        "ablationcam",
        "reciprocam",
        "fullgrad",
        "augmented(ablationcam)",
        "noisy(scorecam, n=2)",
        "eigen(scorecam)",
    ]
    if network == "residual":
        model, layer, target = Residual().eval(), "conv", {"a": None, "b": whycam.Margin(1, 2)}
    elif network == "tokens":
        model, layer, target = Transformer(depth=1).eval(), "blocks[0].norm2", [3, 1]
    else:
        model, layer, target = ListOfDicts().eval(), "down", whycam.Boxes(confidence=0.1)
    images = torch.randn(2, 3, 8, 8)
    explainer = whycam.Explainer(model, layer, methods)

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gone = weakref.ref(explainer(images, target))
    for _ in range(CALLS // 5):
        explainer(images, target)
    state = snapshot(model)
    before = tensors()
    for _ in range(CALLS):
        explainer(images, target)
    assert tensors() == before
    assert gone() is None
    assert_unchanged(model, state)


def test_the_tensor_count_notices_a_leak():
    """A method that keeps its traces increases the count of the test above."""
    model, images = make_network(Residual)
    kept = []

    @whycam.cam.method("Keeping", paper="none", needs=("reruns",))
    def keeping(trace):
        """Keeps its trace."""
        kept.append(copy.copy(trace))
        return trace.activations.sum(dim=1)

    try:
        gc.collect()
        before = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        for _ in range(10):
            whycam.explain(model, images, "conv", "keeping")
        gc.collect()
        after = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    finally:
        del whycam.cam.METHODS["keeping"]
    assert after - before > 20
