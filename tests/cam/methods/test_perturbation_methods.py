"""The methods that run the network again: against slow references, and what has to hold whoever asks how."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import (
    DeadChannels,
    Dense,
    InPlace,
    Residual,
    Reused,
    Transformer,
    TupleOutput,
    count_images,
    make_network,
)
from references_perturbation import REFERENCES, scorecam_increase
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import METHODS, Margin, Probability, resolve_layer

LAYER_METHODS = sorted(set(REFERENCES) - {"fullgrad"})
FAST = [*sorted(set(LAYER_METHODS) - {"sscam"}), "sscam(n=3)"]
NETWORKS = {
    "in place": (InPlace, "norm"),
    "in place, pooled head": (InPlace, "act2"),
    "reused": (Reused, "stem"),
    "runs twice": (Reused, "shared"),
    "dict output": (TupleOutput, "conv"),
    "residual": (Residual, "conv"),
    "dense": (Dense, "conv"),
}


class Logits(nn.Module):
    """A network's logits alone, for the references."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        out = self.network(x)
        return out["logits"] if isinstance(out, dict) else out


def test_the_names():
    for name in ["Score-CAM", "SS-CAM", "IS-CAM", "Ablation-CAM", "Recipro-CAM", "Group-CAM", "FullGrad"]:
        normal = name.lower().replace("-", "")
        assert whycam.cam.resolve_methods(name)[0] is METHODS[normal]
        assert normal in REFERENCES


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"runs twice"}))
@pytest.mark.parametrize("method", FAST)
def test_equals_the_reference(network, method):
    kind, layer = NETWORKS[network]
    module, images = make_network(kind)
    classes = [0, 3, 4]
    actual = whycam.explain(module, images, layer, method, classes).map()
    name, options = method.partition("(")[0], {"n": 3} if "(" in method else {}
    for index, class_index in enumerate(classes):
        expected = REFERENCES[name](
            Logits(module), images[index], resolve_layer(module, layer).module, class_index, **options
        )
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ablationcam", {"relative": "score"}),
        ("ablationcam", {"relative": "none"}),
        ("reciprocam", {"gaussian": True}),
        ("reciprocam", {"gaussian": True, "baseline": "empty"}),
        ("iscam", {"n": 4, "cumulative": True}),
        ("sscam", {"n": 3, "sigma": 0.1, "on": "input"}),
        ("groupcam", {"groups": 3, "quantile": 0.4}),
        ("fullgrad", {}),
    ],
)
@pytest.mark.parametrize("network", ["in place", "residual"])
def test_options_equal_the_reference(method, options, network):
    kind, layer = NETWORKS[network]
    module, images = make_network(kind, batch=2)
    actual = whycam.explain(module, images, layer, METHODS[method].using(**options), [0, 3]).map()
    for index, class_index in enumerate([0, 3]):
        target = resolve_layer(module, layer).module
        expected = REFERENCES[method](module, images[index], target, class_index, **options)
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_score_cam_as_an_increase():
    module, images = make_network(InPlace)
    actual = whycam.explain(module, images, "norm", "scorecam(weights='increase')", 2).map()
    for index in range(3):
        expected = scorecam_increase(module, images[index], module.norm, 2)
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["layer4[-1]", "layer4[-2]"])
def test_ablation_on_the_bundled_network(loaded, batch, layer):
    """A few of the channels, each by a whole rerun; layer4[-1] has the closed form, layer4[-2] the tail."""
    double, images = copy.deepcopy(loaded[0]).double(), batch[:2].double()
    module = resolve_layer(double, layer).module
    seen = []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
        logits = double(images)
        handle.remove()
        kept = seen[0].clone()
        kept[:, 4:] = 0  # so that only four channels matter
        handle = module.register_forward_hook(lambda *_: kept.clone())
        try:
            logits = double(images)
            actual = whycam.explain(double, images, layer, "ablationcam", [1, 7]).map()
            expected = torch.zeros_like(kept[:, 0])
            for k in range(4):
                ablated = kept.clone()
                ablated[:, k] = 0
                inner = module.register_forward_hook(lambda *_, ablated=ablated: ablated.clone())
                altered = double(images)
                inner.remove()
                for index, class_index in enumerate([1, 7]):
                    y = logits[index, class_index]
                    expected[index] += (y - altered[index, class_index]) / y.abs() * kept[index, k]
        finally:
            handle.remove()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
@pytest.mark.parametrize("network", ["residual", "runs twice"])
def test_batch_is_one_by_one_whatever_the_chunks(network, method):
    kind, layer = NETWORKS[network]
    module, images = make_network(kind, batch=4)
    together = whycam.explain(module, images, layer, method).map()
    for index in range(4):
        alone = whycam.explain(module, images[index : index + 1], layer, method).map()
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-12)
    if method != "fullgrad":
        small = whycam.cam.resolve_methods(method)[0].using(batch_size=5)
        torch.testing.assert_close(whycam.explain(module, images, layer, small).map(), together, rtol=0, atol=1e-12)


def test_seeds():
    module, images = make_network(Residual)
    one, same, other = (whycam.explain(module, images, "conv", "sscam(n=2)", seed=seed).map() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    state = torch.get_rng_state()
    whycam.explain(module, images, "conv", "sscam(n=2)")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", FAST)
def test_dead_and_constant_channels(method):
    torch.manual_seed(0)
    module, images = DeadChannels().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    actual = whycam.explain(module, images, "act", method, 1).map()
    assert actual.isfinite().all()
    name, options = method.partition("(")[0], {"n": 3} if "(" in method else {}
    for index in range(2):
        expected = REFERENCES[name](module, images[index], module.act, 1, **options)
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", FAST)
def test_nothing_alive(method):
    torch.manual_seed(0)
    module, images = DeadChannels(all_dead=True).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explained = whycam.explain(module, images, "act", method, 1)
    assert explained.map().isfinite().all()
    if method.startswith(("score", "ss", "is", "group")):
        assert not explained.map().any()


def test_only_live_channels_run_and_nothing_before_the_layer():
    torch.manual_seed(0)
    module, images = DeadChannels().double().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    live = 4 * 4
    # One more pass of the batch is the capture; the tail tries itself out on two images, and once more when traced.
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "scorecam")) == 4 + live
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "iscam(n=3)")) == 4 + 3 * live
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "ablationcam")) == 4 + 2
    assert count_images(module.next, lambda: whycam.explain(module, images, "act", "ablationcam")) == 4 + 4 + 5 * 4
    assert count_images(module.conv, lambda: whycam.explain(module, images, "act", "reciprocam")) == 4 + 2


@pytest.mark.parametrize("target", [None, 2, Probability(1), Margin(3, 1), lambda logits: logits.square().sum(1)])
def test_ablation_s_closed_form_is_the_rerun_and_runs_nothing(target):
    module, images = make_network(InPlace)

    def closed():
        return whycam.explain(module, images, "act2", "ablationcam", target).map()

    assert count_images(module.conv, closed) == 3

    # Read at a layer whose tail is not recognized as pool and linear, but is the same function.
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
    slow = whycam.explain(doubled, images, "inner.act2", "ablationcam", target).map()
    torch.testing.assert_close(closed(), slow, rtol=0, atol=1e-12)


def test_ablation_keeps_its_sign_where_the_score_is_negative():
    module, images = make_network(InPlace)
    module.head.bias.data -= 100
    explained = whycam.explain(module, images, "act2", ["ablationcam", "ablationcam(relative='score')", "gradcam"], 1)
    assert (explained.scores["target"] < 0).all()
    ours, papers, gradcam = (explained.map(name) for name in explained.methods)
    torch.testing.assert_close(ours, -papers)
    for index in range(3):
        # Behind mean pool and linear, Ablation-CAM weighs as Grad-CAM does, times the channel's own mean (positive).
        agreement = (ours[index] * gradcam[index]).sum()
        assert agreement > 0


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
def test_every_image_has_its_own_target(method):
    module, images = make_network(Residual, batch=4)
    chosen = torch.tensor([4, 0, 2, 2])
    against = torch.tensor([1, 1, 0, 3])

    def own(logits):
        return logits[torch.arange(4), chosen] if len(logits) == 4 else logits[:, 0] * torch.nan

    classes = whycam.explain(module, images, "conv", method, chosen).map()
    margins = whycam.explain(module, images, "conv", method, Margin(chosen, against)).map()
    called = whycam.explain(module, images, "conv", method, own).map()
    for index in range(4):
        image = images[index : index + 1]
        one = whycam.explain(module, image, "conv", method, int(chosen[index])).map()[0]
        two = whycam.explain(module, image, "conv", method, Margin(int(chosen[index]), int(against[index]))).map()[0]
        torch.testing.assert_close(classes[index], one, rtol=0, atol=1e-12)
        torch.testing.assert_close(margins[index], two, rtol=0, atol=1e-12)
    if method != "reciprocam":  # it takes a class's probability, and a callable as it is
        torch.testing.assert_close(called, classes, rtol=0, atol=1e-12)


def test_the_predicted_class_stays_the_same_for_altered_images():
    module, images = make_network(Residual, batch=4)
    predicted = module(images).argmax(1)
    for method in [*FAST, "fullgrad"]:
        one, two = (whycam.explain(module, images, "conv", method, target).map() for target in (None, predicted))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
def test_model_is_as_before(method):
    module, images = make_network(InPlace)
    module.train()
    module.norm.eval()
    module.conv.weight.requires_grad_(False)
    module.head.weight.grad = torch.ones_like(module.head.weight)
    before = snapshot(module)
    whycam.explain(module, images, "norm", method)
    assert_unchanged(module, before)

    # An exception on whichever pass, from inside the network and from the target.
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


def test_tokens():
    torch.manual_seed(0)
    module, images = Transformer().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer = module.blocks[1].norm2
    seen = []
    handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        logits = module(images)
    handle.remove()
    tokens = seen[0]
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)
    for k in range(8):
        ablated = tokens.clone()
        ablated[:, 1:, k] = 0
        handle = layer.register_forward_hook(lambda *_, ablated=ablated: ablated.clone())
        with torch.no_grad():
            altered = module(images)
        handle.remove()
        drop = (logits[:, 3] - altered[:, 3]) / logits[:, 3].abs()
        expected += drop[:, None, None] * tokens[:, 1:, k].reshape(2, 2, 2)
    actual = whycam.explain(module, images, "blocks[1].norm2", "ablationcam", 3).map()
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-12)
    for method in [*FAST, "fullgrad"]:
        assert whycam.explain(module, images, "blocks[1].norm2", method, 3).map().isfinite().all()


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(method, axes):
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[axes]
    module = nn.Sequential(
        conv(2, 4, 3, padding=1), nn.ReLU(), conv(4, 4, 3, 2, 1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()  # fmt: skip
    images = torch.randn(2, 2, *[6, 5, 7][:axes])
    for layer in ["1", "2"]:
        explained = whycam.explain(module, images, layer, method)
        raw = explained.map()
        assert raw.ndim == axes + 1
        assert raw.isfinite().all()
        alone = whycam.explain(module, images[1:], layer, method).map()
        torch.testing.assert_close(alone[0], raw[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
def test_mixed_precision(method):
    module, images = make_network(Residual)
    module, images = module.float(), images.float()
    exact = whycam.explain(module, images, "conv", method, 1).map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = whycam.explain(module, images, "conv", method, 1).map()
    half = whycam.explain(copy.deepcopy(module).bfloat16(), images.bfloat16(), "conv", method, 1).map()
    for raw in (mixed, half):
        assert raw.dtype == torch.float32
        assert raw.isfinite().all()
    # Rounding turns single ReLUs around, so single places may differ by much.
    agreement = torch.corrcoef(torch.stack([mixed.flatten(), exact.flatten()]))[0, 1]
    # A single position moves this network's probabilities by a thousandth, which is bfloat16's resolution.
    assert agreement > (0.5 if method == "reciprocam" else 0.95)
    with torch.inference_mode():
        torch.testing.assert_close(whycam.explain(module, images, "conv", method, 1).map(), exact)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("scorecam(weights='none')", "Score-CAM's weights are 'softmax' or 'increase', not 'none'"),
        ("sscam(on='map')", "noise goes on the 'mask' or on the 'input', not on 'map'"),
        ("sscam(n=0)", "option n of SS-CAM is a whole number of at least 1, not 0"),
        ("iscam(n=0)", "option n of IS-CAM is a whole number of at least 1, not 0"),
        ("groupcam(groups=0)", "option groups of Group-CAM is a whole number of at least 1, not 0"),
        ("ablationcam(relative='y')", "relative to the score's 'size', the 'score' or 'none', not 'y'"),
        ("reciprocam(baseline='max')", "baseline is 'min' or 'empty', not 'max'"),
        ("scorecam(batch_size=0)", "option batch_size of Score-CAM is a whole number of at least 1, not 0"),
    ],
)
def test_wrong_options(method, message):
    module, images = make_network(Residual)
    with pytest.raises(WhycamError, match=message):
        whycam.explain(module, images, "conv", method)


def test_nothing_grows():
    """Tensors alive after many calls are as many as after one."""
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
