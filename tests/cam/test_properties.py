"""Properties that hold for every network, on random small ones: in-place, residual, reused, grouped, strided layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

import whycam
from whycam.cam import METHODS, resolve_layers

LAYER_METHODS = sorted(
    name for name, known in METHODS.items() if known.scope == "layer" and "reruns" not in known.needs and name != "cam"
)


class Block(nn.Module):
    """One convolution of a random kind."""

    def __init__(self, kind: str, channels: int, shared: nn.Module):
        super().__init__()
        self.kind = kind
        groups = 2 if kind == "grouped" else 1
        stride = 2 if kind == "strided" else 1
        self.conv = shared if kind == "reused" else nn.Conv2d(channels, channels, 3, stride, 1, groups=groups)
        self.norm = nn.BatchNorm2d(channels)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.kind == "residual":
            return F.relu(y + x, inplace=True)
        if self.kind == "in-place":
            return F.relu_(y)
        return F.relu(y)


class Network(nn.Module):
    def __init__(self, kinds, channels):
        super().__init__()
        shared = nn.Conv2d(channels, channels, 3, 1, 1)
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.blocks = nn.Sequential(*(Block(kind, channels, shared) for kind in kinds))
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


# At most two strides: after three, only a single position would be left.
KINDS = st.lists(
    st.sampled_from(["plain", "in-place", "residual", "reused", "grouped", "strided"]), min_size=1, max_size=4
).filter(lambda kinds: kinds.count("strided") <= 2)


@st.composite
def cases(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kinds = draw(KINDS)
    model = Network(kinds, 4).double().eval()
    images = torch.randn(draw(st.integers(1, 3)), 3, 16, draw(st.sampled_from([16, 12])), dtype=torch.float64)
    layer = f"blocks[{draw(st.integers(0, len(kinds) - 1))}]"
    return model, images, layer, draw(st.integers(0, 4))


@given(case=cases())
@settings(max_examples=25, deadline=None)
def test_capture_equals_a_plain_backward_pass(case):
    model, images, layer, target = case
    module = resolve_layers(model, [layer])[0].module
    captured = {}

    def keep(_module, _inputs, output):
        captured["a"] = output
        output.retain_grad()
        return output.clone()

    handle = module.register_forward_hook(keep)
    model(images)[:, target].sum().backward()
    handle.remove()
    model.zero_grad()
    a, g = captured["a"].detach(), captured["a"].grad
    explained = whycam.explain(model, images, layer, ["gradcam", "hirescam"], target)
    torch.testing.assert_close(explained.map("hirescam"), (a * g).sum(1), rtol=0, atol=1e-11)
    expected = (a * g.mean((2, 3), keepdim=True)).sum(1)
    torch.testing.assert_close(explained.map("gradcam"), expected, rtol=0, atol=1e-11)


@given(case=cases(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_batches_permute_and_split(case, data):
    model, images, layer, target = case
    order = data.draw(st.permutations(range(len(images))))
    together = whycam.explain(model, images, layer, LAYER_METHODS, target)
    shuffled = whycam.explain(model, images[list(order)], layer, LAYER_METHODS, target)
    for key, raw in together.maps.items():
        torch.testing.assert_close(shuffled.maps[key], raw[list(order)], rtol=1e-7, atol=1e-9, equal_nan=True)
    alone = whycam.explain(model, images[:1], layer, LAYER_METHODS, target)
    for key, raw in alone.maps.items():
        torch.testing.assert_close(together.maps[key][:1], raw, rtol=1e-7, atol=1e-9, equal_nan=True)


@given(case=cases())
@settings(max_examples=15, deadline=None)
def test_the_last_block_sums_to_the_logit(case):
    model, images, _, target = case
    last = f"blocks[{len(model.blocks) - 1}]"
    explained = whycam.explain(model, images, last, ["gradcam", "hirescam", "xgradcam"], target)
    total = explained.map("hirescam").sum((1, 2)) + model.head.bias[target].detach()
    torch.testing.assert_close(total, explained.logits[:, target], rtol=0, atol=1e-11)
    torch.testing.assert_close(explained.map("gradcam"), explained.map("hirescam"), rtol=0, atol=1e-11)
    torch.testing.assert_close(explained.map("xgradcam"), explained.map("gradcam"), rtol=0, atol=1e-10)


@given(case=cases(), factor=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_linear_methods_scale_with_the_score(case, factor):
    model, images, layer, target = case
    linear = ["gradcam", "hirescam", "gradcamelementwise", "xgradcam", "layercam", "counterfactual"]
    one = whycam.explain(model, images, layer, linear, target)
    other = whycam.explain(model, images, layer, linear, lambda logits: factor * logits[:, target])
    for key, raw in one.maps.items():
        torch.testing.assert_close(other.maps[key], factor * raw, rtol=1e-9, atol=1e-10)


RERUNNING = ["ablationcam", "scorecam", "reciprocam", "groupcam(groups=2)", "guidedgradcam", "augmented(gradcam)",
             "augmented(ablationcam)", "noisy(scorecam, n=2)"]  # fmt: skip


@given(case=cases(), data=st.data())
@settings(max_examples=5, deadline=None)
def test_batches_permute_and_split_for_rerunning_methods(case, data):
    model, images, layer, target = case
    images = images[:2, :, :8, :8]
    order = data.draw(st.permutations(range(len(images))))
    together = whycam.explain(model, images, layer, RERUNNING, target)
    shuffled = whycam.explain(model, images[list(order)], layer, RERUNNING, target)
    alone = whycam.explain(model, images[:1], layer, RERUNNING, target)
    for key, raw in together.maps.items():
        near = 1e-9 * max(1.0, float(raw.abs().max()))
        torch.testing.assert_close(
            shuffled.maps[key], raw[list(order)], rtol=0, atol=near, equal_nan=True, msg=str(key)
        )
        torch.testing.assert_close(alone.maps[key], raw[:1], rtol=0, atol=near, equal_nan=True, msg=str(key))


@given(case=cases())
@settings(max_examples=8, deadline=None)
def test_range_of_score_cam_and_minimum_of_recipro_cam(case):
    """Score-CAM is a weighted mean of the channels that are not constant; Recipro-CAM's minimum is 0."""
    model, images, layer, target = case
    images = images[:, :, :8, :8]
    captured = []
    handle = resolve_layers(model, [layer])[0].module.register_forward_hook(
        lambda _m, _i, out: captured.append(out.clone())
    )
    with torch.no_grad():
        model(images)
    handle.remove()
    explained = whycam.explain(model, images, layer, ["scorecam", "reciprocam"], target)
    flat = captured[0].flatten(2)
    live = (flat.amax(2) > flat.amin(2))[:, :, None, None]
    some = live.flatten(1).any(1)
    low = captured[0].masked_fill(~live, float("inf")).amin(1)[some]
    high = captured[0].masked_fill(~live, float("-inf")).amax(1)[some]
    raw = explained.map("scorecam")
    assert bool((raw[some] >= low - 1e-12).all())
    assert bool((raw[some] <= high + 1e-12).all())
    assert not bool(raw[~some].any())
    least = explained.map("reciprocam").flatten(1).amin(1)
    assert torch.equal(least, torch.zeros_like(least))


@given(case=cases(), scale=st.floats(0.2, 5))
@settings(max_examples=6, deadline=None)
def test_ablation_cam_does_not_depend_on_the_scale_of_the_score(case, scale):
    model, images, layer, target = case
    images = images[:2, :, :8, :8]
    one = whycam.explain(model, images, layer, "ablationcam", target)
    column = whycam.WholeOutput(lambda logits: scale * logits[:, target])
    other = whycam.explain(model, images, layer, "ablationcam", column)
    for key, raw in one.maps.items():
        near = 1e-8 * max(1.0, float(raw.abs().max()))
        torch.testing.assert_close(other.maps[key], raw, rtol=0, atol=near)


@pytest.mark.parametrize("where", ["forward", "hook", "target", "method"])
def test_exceptions_leave_the_model_as_it_was(where, batch):
    torch.manual_seed(0)
    model = Network(["in-place", "residual"], 4)
    model.train()
    model.blocks[0].eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)

    class StopError(Exception):
        pass

    def fail(*_):
        raise StopError

    @whycam.cam.method("Failing", paper="none")
    def failing(trace):
        """Fails."""
        raise StopError

    handle = None
    if where in ("forward", "hook"):
        module = model.head if where == "forward" else model.blocks[1]
        handle = module.register_forward_pre_hook(fail) if where == "forward" else module.register_forward_hook(fail)
    try:
        before = [(m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
        with pytest.raises(StopError):
            whycam.explain(
                model, batch, "blocks[0]", "failing" if where == "method" else "gradcam",
                fail if where == "target" else None,
            )  # fmt: skip
        assert before == [(m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
        assert not model.stem.weight.requires_grad
        assert model.blocks[0].conv.weight.requires_grad
        assert model.blocks[0].conv.weight.grad is None
        assert bool((model.head.weight.grad == 1).all())
    finally:
        del METHODS["failing"]
        if handle is not None:
            handle.remove()
