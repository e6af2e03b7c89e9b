"""Methods that run the network again: float64 references, batching, dead channels, targets, precision, options."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import (
    DeadChannels,
    Dense,
    InPlace,
    Residual,
    Reused,
    Transformer,
    TupleOutput,
    make_network,
)
from references_perturbation import REFERENCES, scorecam_increase
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import METHODS, Margin, resolve_layer

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
    """Returns a network's logits alone, for the references."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        out = self.network(x)
        return out["logits"] if isinstance(out, dict) else out


def test_every_method_has_a_reference():
    for name in ["Score-CAM", "SS-CAM", "IS-CAM", "Ablation-CAM", "Recipro-CAM", "Group-CAM", "FullGrad"]:
        normal = name.lower().replace("-", "")
        assert whycam.cam.resolve_methods(name)[0] is METHODS[normal]
        assert normal in REFERENCES


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"runs twice"}))
@pytest.mark.parametrize("method", FAST)
def test_maps_equal_the_reference(network, method):
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
def test_maps_with_options_equal_the_reference(method, options, network):
    kind, layer = NETWORKS[network]
    module, images = make_network(kind, batch=2)
    actual = whycam.explain(module, images, layer, METHODS[method].using(**options), [0, 3]).map()
    for index, class_index in enumerate([0, 3]):
        target = resolve_layer(module, layer).module
        expected = REFERENCES[method](module, images[index], target, class_index, **options)
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_score_cam_with_increase_as_weights():
    module, images = make_network(InPlace)
    actual = whycam.explain(module, images, "norm", "scorecam(weights='increase')", 2).map()
    for index in range(3):
        expected = scorecam_increase(module, images[index], module.norm, 2)
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["layer4[-1]", "layer4[-2]"])
def test_ablation_cam_on_the_bundled_network(loaded, batch, layer):
    """Four channels, each compared with a whole rerun; layer4[-1] has the closed form, layer4[-2] uses the tail."""
    double, images = copy.deepcopy(loaded[0]).double(), batch[:2].double()
    module = resolve_layer(double, layer).module
    outputs = []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _m, _i, out: outputs.append(out.clone()))
        logits = double(images)
        handle.remove()
        kept = outputs[0].clone()
        kept[:, 4:] = 0  # only four channels are tested
        handle = module.register_forward_hook(lambda *_: kept.clone())
        try:
            logits = double(images)
            actual = whycam.explain(double, images, layer, "ablationcam", [1, 7]).map()
            expected = torch.zeros_like(kept[:, 0])
            for k in range(4):
                ablated = kept.clone()
                ablated[:, k] = 0
                inner = module.register_forward_hook(lambda *_, ablated=ablated: ablated.clone())
                ablated_logits = double(images)
                inner.remove()
                for index, class_index in enumerate([1, 7]):
                    y = logits[index, class_index]
                    expected[index] += (y - ablated_logits[index, class_index]) / y.abs() * kept[index, k]
        finally:
            handle.remove()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
@pytest.mark.parametrize("network", ["residual", "runs twice"])
def test_batch_equals_single_images_for_any_batch_size(network, method):
    kind, layer = NETWORKS[network]
    module, images = make_network(kind, batch=4)
    together = whycam.explain(module, images, layer, method).map()
    for index in range(4):
        alone = whycam.explain(module, images[index : index + 1], layer, method).map()
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-12)
    if method != "fullgrad":
        small = whycam.cam.resolve_methods(method)[0].using(batch_size=5)
        torch.testing.assert_close(whycam.explain(module, images, layer, small).map(), together, rtol=0, atol=1e-12)


def test_draws_depend_on_the_seed_alone():
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
def test_layer_with_dead_channels_only(method):
    torch.manual_seed(0)
    module, images = DeadChannels(all_dead=True).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explained = whycam.explain(module, images, "act", method, 1)
    assert explained.map().isfinite().all()
    if method.startswith(("score", "ss", "is", "group")):
        assert not explained.map().any()


def test_sign_of_ablation_cam_for_negative_scores():
    module, images = make_network(InPlace)
    module.head.bias.data -= 100
    explained = whycam.explain(module, images, "act2", ["ablationcam", "ablationcam(relative='score')", "gradcam"], 1)
    assert (explained.scores["target"] < 0).all()
    ours, papers, gradcam = (explained.map(name) for name in explained.methods)
    torch.testing.assert_close(ours, -papers)
    for index in range(3):
        # If a mean and a linear layer follow, Ablation-CAM's weights are Grad-CAM's times the channel's positive mean.
        agreement = (ours[index] * gradcam[index]).sum()
        assert agreement > 0


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
def test_targets_per_image(method):
    module, images = make_network(Residual, batch=4)
    chosen = torch.tensor([4, 0, 2, 2])
    against = torch.tensor([1, 1, 0, 3])

    def whole_batch_only(logits):
        return logits[torch.arange(4), chosen] if len(logits) == 4 else logits[:, 0] * torch.nan

    classes = whycam.explain(module, images, "conv", method, chosen).map()
    margins = whycam.explain(module, images, "conv", method, Margin(chosen, against)).map()
    called = whycam.explain(module, images, "conv", method, whole_batch_only).map()
    for index in range(4):
        image = images[index : index + 1]
        one = whycam.explain(module, image, "conv", method, int(chosen[index])).map()[0]
        two = whycam.explain(module, image, "conv", method, Margin(int(chosen[index]), int(against[index]))).map()[0]
        torch.testing.assert_close(classes[index], one, rtol=0, atol=1e-12)
        torch.testing.assert_close(margins[index], two, rtol=0, atol=1e-12)
    if method != "reciprocam":  # it explains the probability of a class, but a callable unchanged
        torch.testing.assert_close(called, classes, rtol=0, atol=1e-12)


def test_predicted_class_is_that_of_the_unperturbed_images():
    module, images = make_network(Residual, batch=4)
    predicted = module(images).argmax(1)
    for method in [*FAST, "fullgrad"]:
        one, two = (whycam.explain(module, images, "conv", method, target).map() for target in (None, predicted))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_layers_of_tokens():
    torch.manual_seed(0)
    module, images = Transformer().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer = module.blocks[1].norm2
    outputs = []
    handle = layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    with torch.no_grad():
        logits = module(images)
    handle.remove()
    tokens = outputs[0]
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)
    for k in range(8):
        ablated = tokens.clone()
        ablated[:, 1:, k] = 0
        handle = layer.register_forward_hook(lambda *_, ablated=ablated: ablated.clone())
        with torch.no_grad():
            ablated_logits = module(images)
        handle.remove()
        drop = (logits[:, 3] - ablated_logits[:, 3]) / logits[:, 3].abs()
        expected += drop[:, None, None] * tokens[:, 1:, k].reshape(2, 2, 2)
    actual = whycam.explain(module, images, "blocks[1].norm2", "ablationcam", 3).map()
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-12)
    for method in [*FAST, "fullgrad"]:
        assert whycam.explain(module, images, "blocks[1].norm2", method, 3).map().isfinite().all()


@pytest.mark.parametrize("method", [*FAST, "fullgrad"])
@pytest.mark.parametrize("axes", [1, 3])
def test_series_and_volumes(method, axes):
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
def test_autocast_and_half_precision(method):
    module, images = make_network(Residual)
    module, images = module.float(), images.float()
    exact = whycam.explain(module, images, "conv", method, 1).map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = whycam.explain(module, images, "conv", method, 1).map()
    half = whycam.explain(copy.deepcopy(module).bfloat16(), images.bfloat16(), "conv", method, 1).map()
    for raw in (mixed, half):
        assert raw.dtype == torch.float32
        assert raw.isfinite().all()
    # Rounding switches single ReLUs, so single positions may differ much.
    agreement = torch.corrcoef(torch.stack([mixed.flatten(), exact.flatten()]))[0, 1]
    # A single position changes this network's probabilities by a thousandth, which is bfloat16's resolution.
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
def test_bad_options_are_refused(method, message):
    module, images = make_network(Residual)
    with pytest.raises(WhycamError, match=message):
        whycam.explain(module, images, "conv", method)
