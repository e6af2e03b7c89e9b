"""The combinators `augmented`, `noisy` and `eigen`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import InPlace, Residual, Transformer, count_images, make_network
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam.methods import METHODS, augmented, eigen, noisy, resolve_methods
from whycam.cam.methods.smoothing import channel_terms
from whycam.seeds import generator

GRADIENT = ["gradcam", "hirescam", "gradcam++", "layercam", "xgradcam", "gradcamelementwise", "eigencam", "finercam"]


@pytest.mark.parametrize("method", [*GRADIENT, "shapleycam"])
def test_augmented_is_the_mean_of_six_runs(method):
    module, images = make_network(Residual)
    predicted = module(images).argmax(1)
    actual = whycam.explain(module, images, "conv", augmented(method)).map()
    runs = []
    for factor in (0.9, 1.0, 1.1):
        for mirrored in (False, True):
            perturbed = factor * (images.flip(-1) if mirrored else images)
            raw = whycam.explain(module, perturbed, "conv", method, predicted).map()
            runs.append(raw.flip(-1) if mirrored else raw)
    if method == "finercam":  # the similar classes are those of the unperturbed image
        assert actual.shape == runs[0].shape
    else:
        torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)


# All methods that use the network; few draws, for speed.
USE_NETWORK = sorted(
    {name for name, known in METHODS.items() if known.needs or known.scope != "input"} - {"random", "cam"}
)
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "smoothgradcam++": "smoothgradcam++(n=2)", "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip


@pytest.mark.parametrize("method", [FEW.get(name, name) for name in USE_NETWORK])
def test_every_method_can_be_smoothed(method):
    """Also methods that run the network again, which they do for each perturbed image."""
    module, images = make_network(Residual, batch=2, size=6)
    module = Positive(module)
    target = whycam.Finer().freeze(module(images).detach())  # a target that Finer-CAM does not change
    explained = whycam.explain(
        module, images, "network.conv", [augmented(method), noisy(method, n=2, sigma=0.2)], target
    )
    variants = []
    for factor in (0.9, 1.0, 1.1):
        variants.append(whycam.explain(module, factor * images, "network.conv", method, target).map())
        variants.append(whycam.explain(module, factor * images.flip(-1), "network.conv", method, target).map().flip(-1))
    torch.testing.assert_close(explained.map(augmented(method)), torch.stack(variants).mean(0), rtol=0, atol=1e-11)
    draw = generator(0, "noisy n=2 sigma=0.2")
    noise = [0.2 * torch.randn(images.shape[1:], generator=draw, dtype=torch.float64) for _ in range(2)]
    runs = [whycam.explain(module, images + field, "network.conv", method, target).map() for field in noise]
    actual = explained.map(noisy(method, n=2, sigma=0.2))
    torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-11)


class Positive(nn.Module):
    """Makes the scores positive, so that Ablation-CAM's quotient keeps its sign."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).exp()


def test_combinators_can_be_nested():
    module, images = make_network(Residual)
    target = module(images).argmax(1)
    actual = whycam.explain(module, images, "conv", "noisy(augmented(gradcam), n=2, sigma=0.2)", target).map()
    draw = generator(0, "noisy n=2 sigma=0.2")
    noise = [0.2 * torch.randn(images.shape[1:], generator=draw, dtype=torch.float64) for _ in range(2)]
    runs = [whycam.explain(module, images + field, "conv", "augmented(gradcam)", target).map() for field in noise]
    torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["scorecam", "sscam(n=2)", "iscam(n=2)", "ablationcam", "smoothgradcam++(n=2)"])
def test_eigen_of_methods_that_run_the_network_again(method):
    module, images = make_network(InPlace)
    captured = []
    handle = module.norm.register_forward_hook(lambda _m, _i, out: captured.append(out.detach().clone()))
    module(images)
    handle.remove()
    (inner,) = resolve_methods(method)
    parts = []

    @whycam.cam.method("Terms", paper="none", needs=inner.needs, per_channel=True)
    def terms(trace):
        """Record the terms of which eigen takes the principal component."""
        parts.append(channel_terms(inner, trace))
        return parts[0].sum(dim=1)

    try:
        summed = whycam.explain(module, images, "norm", terms, 2).map()
    finally:
        del METHODS["terms"]
    torch.testing.assert_close(summed, whycam.explain(module, images, "norm", method, 2).map(), rtol=0, atol=1e-12)
    # Every term is the channel times one weight.
    a, t = captured[0].flatten(2), parts[0].flatten(2)
    torch.testing.assert_close((a * t).sum(2).abs(), a.norm(dim=2) * t.norm(dim=2), rtol=0, atol=1e-12)
    actual = whycam.explain(module, images, "norm", eigen(method), 2).map()
    for index in range(3):
        columns = t[index].T.numpy()
        _, _, rows = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
        expected = columns @ rows[0]
        expected *= np.sign(np.corrcoef(expected, columns.sum(1))[0, 1])
        np.testing.assert_allclose(actual[index].flatten().numpy(), expected, rtol=0, atol=1e-9)


def test_augmented_costs_six_forward_passes():
    module, images = make_network(Residual)
    count = count_images(
        module.conv, lambda: whycam.explain(module, images, "conv", ["augmented(gradcam)", "layercam"])
    )
    assert count == 6 * 3
    several = ["augmented(gradcam)", "augmented(layercam)"]
    assert count_images(module.conv, lambda: whycam.explain(module, images, "conv", several)) == 6 * 3


def test_noisy_is_the_mean_over_noisy_images():
    module, images = make_network(Residual)
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
def test_number_of_copies_in_a_pass_does_not_matter(method, rows, monkeypatch):
    module, images = make_network(InPlace)
    expected = whycam.explain(module, images, ["norm", "act2"], method)
    monkeypatch.setattr("whycam.cam.methods._perturbed_batches.ROWS", rows)
    actual = whycam.explain(module, images, ["norm", "act2"], method)
    for key, raw in expected.maps.items():
        torch.testing.assert_close(actual.maps[key], raw, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["augmented(gradcam)", "noisy(gradcam, n=2)", "eigen(gradcam)"])
def test_smoothed_batch_equals_single_images(method):
    module, images = make_network(Residual)
    together = whycam.explain(module, images, "conv", method).map()
    for index in range(3):
        alone = whycam.explain(module, images[index : index + 1], "conv", method).map()
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-10)


def test_eigen_is_the_first_component_of_the_weighted_channels():
    module, images = make_network(InPlace)
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
def test_eigen_accepts_sums_over_channels(method):
    module, images = make_network(Residual)
    assert whycam.explain(module, images, "conv", eigen(method)).map().isfinite().all()


@pytest.mark.parametrize("method", ["eigencam", "random", "kpcacam"])
def test_eigen_refuses_other_methods(method):
    module, images = make_network(Residual)
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
def test_names_of_combinators(written, name):
    (method,) = resolve_methods(written)
    assert method.name == name
    assert resolve_methods(name)[0].name == name


def test_maps_are_found_under_the_name_as_written():
    module, images = make_network(Residual)
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
        ("noisy(sobel)", "noisy needs a method that uses the network; Sobel reads images alone"),
        ("augmented(center)", "augmented needs a method that uses the network; Center reads images alone"),
        ("noisy(gradcam, n=0)", "option n of noisy is a whole number of at least 1, not 0"),
        ("eigen(reciprocam)", "Recipro-CAM is no sum over channels"),
        ("eigen(guidedgradcam)", "Guided Grad-CAM is no sum over channels"),
        ("eigen(refinecam)", "Refine-CAM is no sum over channels"),
        ("eigen(fullgrad)", "FullGrad is no sum over channels"),
        (
            "eigen(augmented(gradcam))",
            r"is a mean over several images: smooth the component instead, augmented\(eigen\(gradcam\)\)",
        ),
        ("eigen(noisy(fem(k=1), n=2))", r"smooth the component instead, noisy\(eigen\(fem\(k=1\)\)\)"),
    ],
)
def test_bad_combinations_are_refused(written, message):
    with pytest.raises(WhycamError, match=message):
        resolve_methods(written)


@pytest.mark.parametrize("method", [augmented("finercam"), noisy("fem(k=3)", n=2), eigen(METHODS["gradcam"])])
def test_combined_methods_can_be_pickled(method):
    module, images = make_network(Residual)
    other = pickle.loads(pickle.dumps(method))
    assert other.name == method.name
    one, two = (whycam.explain(module, images, "conv", m).map() for m in (method, other))
    assert torch.equal(one, two)


def test_smoothing_of_multi_layer_methods_and_tokens():
    module, images = make_network(InPlace)
    before = snapshot(module)
    explained = whycam.explain(module, images, ["norm", "act2"], ["augmented(refinecam)", "noisy(refinecam, n=2)"])
    assert explained.map("augmented(refinecam)").isfinite().all()
    assert_unchanged(module, before)
    torch.manual_seed(0)
    tokens = Transformer().double().eval()
    flat = whycam.explain(tokens, images[:, :, :8, :8], "blocks[1].norm2", "augmented(gradcam)").map()
    assert flat.shape == (3, 2, 2)
