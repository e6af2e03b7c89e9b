"""Methods made of methods, and heatmaps of several layers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from networks import InPlace
from test_capture import assert_unchanged, snapshot
from test_perturbation import make, rows_run
from test_tail import Residual, Transformer
from torch import nn
from torch.nn import functional as F

import whycam
from whycam import WhycamError
from whycam.cam.maps import aggregate, heatmaps, resize
from whycam.cam.methods import METHODS, augmented, eigen, noisy, resolve_methods
from whycam.cam.methods.smoothing import channel_parts
from whycam.seeds import generator

GRADIENT = ["gradcam", "hirescam", "gradcam++", "layercam", "xgradcam", "gradcamelementwise", "eigencam", "finercam"]


@pytest.mark.parametrize("method", [*GRADIENT, "shapleycam"])
def test_augmented_is_the_mean_of_six_runs(method):
    module, images = make(Residual)
    predicted = module(images).argmax(1)
    actual = whycam.explain(module, images, "conv", augmented(method)).map()
    runs = []
    for factor in (0.9, 1.0, 1.1):
        for mirrored in (False, True):
            altered = factor * (images.flip(-1) if mirrored else images)
            raw = whycam.explain(module, altered, "conv", method, predicted).map()
            runs.append(raw.flip(-1) if mirrored else raw)
    if method == "finercam":  # the similar classes are the unaltered image's
        assert actual.shape == runs[0].shape
    else:
        torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)


# Everything but what looks at no network; few draws, for speed.
NETWORKED = sorted(
    {name for name, known in METHODS.items() if known.needs or known.scope != "input"} - {"random", "cam"}
)
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "smoothgradcam++": "smoothgradcam++(n=2)", "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip


@pytest.mark.parametrize("method", [FEW.get(name, name) for name in NETWORKED])
def test_every_method_may_be_smoothed(method):
    """Also those that run the network again: they do so on each altered image."""
    module, images = make(Residual, batch=2, size=6)
    module = Positive(module)
    target = whycam.Finer().freeze(module(images).detach())  # what even Finer-CAM takes as it is
    explained = whycam.explain(
        module, images, "network.conv", [augmented(method), noisy(method, n=2, sigma=0.2)], target
    )
    turned = []
    for factor in (0.9, 1.0, 1.1):
        turned.append(whycam.explain(module, factor * images, "network.conv", method, target).map())
        turned.append(whycam.explain(module, factor * images.flip(-1), "network.conv", method, target).map().flip(-1))
    torch.testing.assert_close(explained.map(augmented(method)), torch.stack(turned).mean(0), rtol=0, atol=1e-11)
    draw = generator(0, "noisy n=2 sigma=0.2")
    noise = [0.2 * torch.randn(images.shape[1:], generator=draw, dtype=torch.float64) for _ in range(2)]
    altered = [whycam.explain(module, images + field, "network.conv", method, target).map() for field in noise]
    actual = explained.map(noisy(method, n=2, sigma=0.2))
    torch.testing.assert_close(actual, torch.stack(altered).mean(0), rtol=0, atol=1e-11)


class Positive(nn.Module):
    """Positive scores, so that Ablation-CAM's quotient keeps its sign."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).exp()


def test_smoothing_may_be_smoothed():
    module, images = make(Residual)
    target = module(images).argmax(1)
    actual = whycam.explain(module, images, "conv", "noisy(augmented(gradcam), n=2, sigma=0.2)", target).map()
    draw = generator(0, "noisy n=2 sigma=0.2")
    noise = [0.2 * torch.randn(images.shape[1:], generator=draw, dtype=torch.float64) for _ in range(2)]
    runs = [whycam.explain(module, images + field, "conv", "augmented(gradcam)", target).map() for field in noise]
    torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["scorecam", "sscam(n=2)", "iscam(n=2)", "ablationcam", "smoothgradcam++(n=2)"])
def test_eigen_of_methods_that_run_the_network_again(method):
    module, images = make(InPlace)
    seen = []
    handle = module.norm.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    module(images)
    handle.remove()
    (inner,) = resolve_methods(method)
    parts = []

    @whycam.cam.method("Terms", paper="none", needs=inner.needs, per_channel=True)
    def terms(trace):
        """What eigen is given."""
        parts.append(channel_parts(inner, trace))
        return parts[0].sum(dim=1)

    try:
        summed = whycam.explain(module, images, "norm", terms, 2).map()
    finally:
        del METHODS["terms"]
    torch.testing.assert_close(summed, whycam.explain(module, images, "norm", method, 2).map(), rtol=0, atol=1e-12)
    # One weight for each channel: every term is the channel itself, times a number.
    a, t = seen[0].flatten(2), parts[0].flatten(2)
    torch.testing.assert_close((a * t).sum(2).abs(), a.norm(dim=2) * t.norm(dim=2), rtol=0, atol=1e-12)
    actual = whycam.explain(module, images, "norm", eigen(method), 2).map()
    for index in range(3):
        columns = t[index].T.numpy()
        _, _, rows = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
        expected = columns @ rows[0]
        expected *= np.sign(np.corrcoef(expected, columns.sum(1))[0, 1])
        np.testing.assert_allclose(actual[index].flatten().numpy(), expected, rtol=0, atol=1e-9)


def test_augmented_costs_six_forward_passes():
    module, images = make(Residual)
    count = rows_run(module.conv, lambda: whycam.explain(module, images, "conv", ["augmented(gradcam)", "layercam"]))
    assert count == 6 * 3
    several = ["augmented(gradcam)", "augmented(layercam)"]
    assert rows_run(module.conv, lambda: whycam.explain(module, images, "conv", several)) == 6 * 3


def test_noisy_is_the_mean_over_noise():
    module, images = make(Residual)
    predicted = module(images).argmax(1)
    draw = generator(0, "noisy n=3 sigma=0.2")
    noise = [0.2 * torch.randn(images.shape[1:], generator=draw, dtype=torch.float64) for _ in range(3)]
    runs = [whycam.explain(module, images + field, "conv", "hirescam", predicted).map() for field in noise]
    actual = whycam.explain(module, images, "conv", noisy("hirescam", n=3, sigma=0.2)).map()
    torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)
    other = whycam.explain(module, images, "conv", noisy("hirescam", n=3, sigma=0.2), seed=1).map()
    assert not torch.allclose(actual, other)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("method", ["augmented(gradcam)", "noisy(gradcam, n=3)", "augmented(refinecam)"])
def test_copies_may_share_a_pass(method, rows, monkeypatch):
    module, images = make(InPlace)
    expected = whycam.explain(module, images, ["norm", "act2"], method)
    monkeypatch.setattr("whycam.cam.methods._perturbed_batches.ROWS", rows)
    actual = whycam.explain(module, images, ["norm", "act2"], method)
    for key, raw in expected.maps.items():
        torch.testing.assert_close(actual.maps[key], raw, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["augmented(gradcam)", "noisy(gradcam, n=2)", "eigen(gradcam)"])
def test_batch_is_one_by_one(method):
    module, images = make(Residual)
    together = whycam.explain(module, images, "conv", method).map()
    for index in range(3):
        alone = whycam.explain(module, images[index : index + 1], "conv", method).map()
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-10)


def test_eigen_is_the_first_component_of_the_weighted_channels():
    module, images = make(InPlace)
    actual = whycam.explain(module, images, "norm", "eigen(gradcam)", 2).map()
    for index in range(3):
        x = images[index : index + 1].clone()
        kept = []

        def cut(_m, _i, out, kept=kept):
            kept.append(out.detach().clone().requires_grad_())
            return kept[0].clone()

        handle = module.norm.register_forward_hook(cut)
        module(x)[0, 2].backward()
        handle.remove()
        a, g = kept[0].detach()[0].numpy(), kept[0].grad[0].numpy()
        weighted = g.mean(axis=(1, 2))[:, None, None] * a
        columns = weighted.reshape(len(a), -1).T
        _, _, rows = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
        expected = (columns @ rows[0]).reshape(a.shape[1:])
        if np.corrcoef(expected.ravel(), weighted.sum(0).ravel())[0, 1] < 0:
            expected = -expected
        np.testing.assert_allclose(actual[index].numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "method", ["gradcam", "hirescam", "gradcam++", "layercam", "xgradcam", "gradcamelementwise", "fem", "shapleycam"]
)
def test_eigen_takes_apart_what_is_a_sum(method):
    module, images = make(Residual)
    assert whycam.explain(module, images, "conv", eigen(method)).map().isfinite().all()


@pytest.mark.parametrize("method", ["eigencam", "random", "kpcacam"])
def test_eigen_refuses_what_is_not(method):
    module, images = make(Residual)
    with pytest.raises(WhycamError, match="is no sum over channels"):
        whycam.explain(module, images, "conv", eigen(method))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Augmented(Grad-CAM)", "augmented(gradcam)"),
        ("augmented( fem(k=3) )", "augmented(fem(k=3))"),
        ("augmented(eigen(Layer-CAM))", "augmented(eigen(layercam))"),
        ("noisy(gradcam, n=4)", "noisy(gradcam, n=4, sigma=0.1)"),
        ("noisy(fem(k=1), sigma=0.5, n=2)", "noisy(fem(k=1), n=2, sigma=0.5)"),
    ],
)
def test_strings(written, name):
    (method,) = resolve_methods(written)
    assert method.name == name
    assert resolve_methods(name)[0].name == name


def test_found_under_the_name_as_written():
    module, images = make(Residual)
    explained = whycam.explain(module, images, "conv", ["Augmented(Grad-CAM)", "gradcam"])
    assert explained.methods == ("augmented(gradcam)", "gradcam")
    assert torch.equal(explained.map("Augmented(Grad-CAM)"), explained.map(augmented("gradcam")))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("augmented", r"augmented needs a method: write it like augmented\(gradcam\)"),
        ("augmented()", "augmented needs a method"),
        ("augmented(gradcamm)", r"unknown method 'gradcamm' \(did you mean gradcam"),
        ("augmentd(gradcam)", r"unknown method 'augmentd\(gradcam\)' \(did you mean augmented"),
        ("noisy(sobel)", "noisy averages what a network answers to, and Sobel looks at the images alone"),
        ("augmented(center)", "augmented averages what a network answers to, and Center looks at the images alone"),
        ("noisy(gradcam, n=0)", "option n of noisy is a whole number of at least 1, not 0"),
        ("eigen(reciprocam)", "Recipro-CAM is no sum over channels"),
        ("eigen(guidedgradcam)", "Guided Grad-CAM is no sum over channels"),
        ("eigen(refinecam)", "Refine-CAM is no sum over channels"),
        ("eigen(fullgrad)", "FullGrad is no sum over channels"),
        (
            "eigen(augmented(gradcam))",
            r"is a mean over several: smooth the component instead, augmented\(eigen\(gradcam\)\)",
        ),
        ("eigen(noisy(fem(k=1), n=2))", r"smooth the component instead, noisy\(eigen\(fem\(k=1\)\)\)"),
    ],
)
def test_what_does_not_go_together(written, message):
    with pytest.raises(WhycamError, match=message):
        resolve_methods(written)


@pytest.mark.parametrize("method", [augmented("finercam"), noisy("fem(k=3)", n=2), eigen(METHODS["gradcam"])])
def test_pickled(method):
    module, images = make(Residual)
    other = pickle.loads(pickle.dumps(method))
    assert other.name == method.name
    one, two = (whycam.explain(module, images, "conv", m).map() for m in (method, other))
    assert torch.equal(one, two)


def test_all_layers_and_tokens_and_several_methods():
    module, images = make(InPlace)
    before = snapshot(module)
    explained = whycam.explain(module, images, ["norm", "act2"], ["augmented(refinecam)", "noisy(refinecam, n=2)"])
    assert explained.map("augmented(refinecam)").isfinite().all()
    assert_unchanged(module, before)
    torch.manual_seed(0)
    tokens = Transformer().double().eval()
    flat = whycam.explain(tokens, images[:, :, :8, :8], "blocks[1].norm2", "augmented(gradcam)").map()
    assert flat.shape == (3, 2, 2)


def test_aggregate():
    module, images = make(InPlace)
    explained = whycam.explain(module, images, ["norm", "act2"], ["gradcam", "layercam"])
    fine, coarse = (explained.map("gradcam", layer) for layer in ("norm", "act2"))
    assert fine.shape[1:] == (9, 9)

    def scaled(raw):
        unit = raw.clamp(min=0) / raw.clamp(min=0).amax((1, 2), keepdim=True)
        unit = unit.nan_to_num(nan=0.0)
        return F.interpolate(unit[:, None], size=(9, 9), mode="bilinear", align_corners=False)[:, 0]

    both = torch.stack([scaled(fine), scaled(coarse)])
    for how, expected in {"mean": both.mean(0), "max": both.amax(0), "product": both.prod(0)}.items():
        torch.testing.assert_close(explained.aggregate("gradcam", how=how), expected)
    one = explained.aggregate("gradcam", ["act2"], size="image")
    torch.testing.assert_close(one, explained.heatmap("gradcam", "act2"))
    assert explained.aggregate("gradcam", ["act2"]).shape == coarse.shape
    assert explained.aggregate("gradcam", size=(4, 6)).shape == (3, 4, 6)
    for method, layers in [("gradcam", ["norm", "conv9"]), ("scorecam", None)]:
        with pytest.raises(WhycamError, match="this explanation has no"):
            explained.aggregate(method, layers)
    with pytest.raises(WhycamError, match="several methods"):
        explained.aggregate()
    with pytest.raises(WhycamError, match="by mean, max or product, not 'sum'"):
        explained.aggregate("gradcam", how="sum")
    with pytest.raises(WhycamError, match="no map to aggregate"):
        aggregate([])
    empty = aggregate([-torch.ones(1, 2, 2), torch.ones(1, 4, 4)], "product")
    assert torch.equal(empty, torch.zeros(1, 4, 4))
    assert torch.equal(aggregate([fine]), heatmaps(fine, (9, 9)))
    assert resize(fine, (9, 9)) is fine
    assert copy.copy(explained).layers == explained.layers
