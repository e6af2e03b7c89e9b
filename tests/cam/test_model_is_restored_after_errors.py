"""What goes wrong in the middle of rerunning leaves everything as it was, and what goes right leaves nothing behind."""

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


class MishapError(Exception):
    pass


class Fuse(nn.Module):
    """Passes things on until it has done so often enough."""

    def __init__(self):
        super().__init__()
        self.left = -1

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise MishapError
        return x


class Fused(nn.Module):
    """Fuses before the layer, behind it, and in a hook on the layer that a user left there."""

    def __init__(self):
        super().__init__()
        self.before, self.behind, self.hook = Fuse(), Fuse(), Fuse()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.layer.register_forward_hook(lambda _m, _i, out: self.hook(out))

    def forward(self, x):
        y = self.layer(self.stem(self.before(x)))
        return self.head(self.last(self.behind(self.act(y))).tanh().mean((2, 3)))


def surroundings():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        _len_torch_function_stack(), _TRACING.locked(), torch.get_rng_state().sum().item(),
    )  # fmt: skip


@pytest.mark.parametrize("place", ["before", "behind", "hook"])
@pytest.mark.parametrize("method", RERUNNING)
def test_a_mishap_in_any_pass_leaves_all_as_it_was(method, place):
    torch.manual_seed(0)
    model, images = Fused(), torch.randn(2, 3, 6, 6)
    model.train()
    model.last.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    fuse = getattr(model, place)
    expected = whycam.explain(model, images, "layer", method, 1).map()
    passes = -1 - fuse.left
    kept = images.clone()
    before, around = snapshot(model), surroundings()
    assert passes >= 1
    raised = 0
    for count in sorted({1, 2, 3, passes // 2, passes - 1, passes} & set(range(1, passes + 1))):
        fuse.left = count
        try:
            actual = whycam.explain(model, images, "layer", method, 1).map()
        except MishapError:
            raised += 1
        else:
            # Only while it is tried out whether what follows the layer runs by itself: if not, all of it runs.
            assert place == "behind"
            torch.testing.assert_close(actual, expected)
        assert_unchanged(model, before)
        assert surroundings() == around
        assert torch.equal(images, kept)
    assert raised
    fuse.left = -1
    assert torch.equal(whycam.explain(model, images, "layer", method, 1).map(), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("method", ["ablationcam", "scorecam", "noisy(ablationcam, n=2)", "inputgradient"])
def test_a_mishap_in_a_target_leaves_all_as_it_was(method, count):
    model, images = make_network(InPlace)
    model.train()
    calls = 0

    def target(logits):
        nonlocal calls
        calls += 1
        if calls == count:
            raise MishapError
        return logits[:, 0]

    before, around = snapshot(model), surroundings()
    try:
        whycam.explain(model, images, "norm", method, target)
    except MishapError:
        pass
    else:
        assert calls < count
    assert_unchanged(model, before)
    assert surroundings() == around


CALLS = 15


@pytest.mark.parametrize("network", ["residual", "tokens", "detector"])
def test_many_calls_that_rerun_leave_nothing_behind(network):
    """As test_2000_calls_leave_nothing_behind has it for the others, with fewer calls: these take ten times as long."""
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


def test_what_is_left_behind_would_be_noticed():
    """The counting above counts: a method that keeps what it is shown is found out."""
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
