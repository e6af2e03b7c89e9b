"""Methods on activations and gradients: float64 references, pytorch-grad-cam's own maps, and exact identities."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from references import REFERENCES, activations_and_gradients
from references_beyond_one_layer import REFERENCES as BEYOND_ONE_LAYER
from references_perturbation import REFERENCES as PERTURBATION
from torch.nn import functional as F

import whycam
from whycam.cam import METHODS, Margin, resolve_layer
from whycam.cam.methods.activation import leading_eigenvector

STUDY_LAYERS = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]


# Principal axes are computed by iteration, from Gram matrices.
PRECISION = dict.fromkeys(("eigencam", "eigengradcam", "segeigencam", "kpcacam"), 1e-09)


def scale(values):
    return max(1.0, np.abs(values).max())


@pytest.fixture(scope="module")
def double(loaded):
    return copy.deepcopy(loaded[0]).double()


def test_every_registered_method_has_a_reference():
    assert set(METHODS) == {*REFERENCES, *BEYOND_ONE_LAYER, *PERTURBATION}


def test_a_method_without_a_reference_is_noticed():
    METHODS["upstart"] = METHODS["gradcam"]
    try:
        with pytest.raises(AssertionError):
            test_every_registered_method_has_a_reference()
    finally:
        del METHODS["upstart"]


@pytest.mark.parametrize("layer", STUDY_LAYERS)
@pytest.mark.parametrize("method", sorted(REFERENCES))
def test_method_equals_its_float64_reference(double, batch, method, layer):
    images = batch[:3].double()
    explained = whycam.explain(double, images, layer, method, targets=[0, 3, 9])
    for index, class_index in enumerate([0, 3, 9]):
        a, g, score = activations_and_gradients(double, images[index], resolve_layer(double, layer).module, class_index)
        expected = REFERENCES[method](a, g)
        actual = explained.map()[index].numpy()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=PRECISION.get(method, 1e-12) * scale(expected))
        assert float(explained.scores["target"][index]) == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize("method", sorted(REFERENCES))
def test_float32_maps_are_close_to_float64(model, double, batch, method):
    single = whycam.explain(model, batch, STUDY_LAYERS, method)
    exact = whycam.explain(double, batch.double(), STUDY_LAYERS, method)
    for key, raw in exact.maps.items():
        error = (single.maps[key].double() - raw).abs().amax() / raw.abs().amax()
        # FEM counts positions above a bound; rounding may move a position across it.
        if method == "fem":
            error = (single.maps[key].double() - raw).abs().mean() / raw.abs().mean()
        assert float(error) < {"eigencam": 1e-4, "eigengradcam": 1e-4, "fem": 1e-3}.get(method, 1e-5), key


def grad_cam_post_processing(raw):
    """pytorch-grad-cam 1.5.7, layer by layer and after averaging: ReLU, min-max, resize; mean; ReLU, min-max."""

    def min_max(maps):
        low = maps.amin((1, 2), keepdim=True)
        return (maps - low) / (1e-7 + (maps - low).amax((1, 2), keepdim=True))

    layers = [
        F.interpolate(min_max(maps.relu())[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
        for maps in raw
    ]
    return min_max(torch.stack(layers).relu().mean(0)).numpy()


@pytest.mark.parametrize(
    ("golden", "method", "layers", "target"),
    [
        *(
            (f"{theirs}|{layer}|predicted", ours, [layer], None)
            for theirs, ours in [("GradCAM", "gradcam"), ("HiResCAM", "hirescam")]
            for layer in ["layer3[-2]", "layer4[-1]"]
        ),
        ("GradCAM|layer2[-2]|predicted", "gradcam", ["layer2[-2]"], None),
        ("GradCAM|layer4[-1]|class 3", "gradcam", ["layer4[-1]"], 3),
        ("GradCAM|layer2[-2]+layer3[-2]+layer4[-1]|predicted", "gradcam", STUDY_LAYERS, None),
    ],
)
def test_equals_pytorch_grad_cam(standin, goldens, golden, method, layers, target):
    explained = whycam.explain(standin, torch.from_numpy(goldens["images"]), layers, method, target)
    ours = grad_cam_post_processing([explained.map(method, layer) for layer in layers])
    np.testing.assert_allclose(ours, goldens[golden], rtol=0, atol=1e-5)
    np.testing.assert_allclose(explained.logits.numpy(), goldens["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_last_layer_map_plus_bias_is_the_logit(double, batch, method):
    for class_index in range(10):
        explained = whycam.explain(double, batch.double(), "layer4[-1]", method, class_index)
        total = explained.map().sum((1, 2)) + double.linear.bias[class_index]
        torch.testing.assert_close(total.detach(), explained.logits[:, class_index], rtol=0, atol=1e-11)


def test_last_layer_margin_map_plus_biases_is_the_margin(double, batch):
    explained = whycam.explain(double, batch.double(), "layer4[-1]", "hirescam", Margin(3, 5))
    bias = (double.linear.bias[3] - double.linear.bias[5]).detach()
    margin = explained.logits[:, 3] - explained.logits[:, 5]
    torch.testing.assert_close(explained.map().sum((1, 2)) + bias, margin, rtol=0, atol=1e-11)


def test_grad_cam_is_hirescam_at_the_last_layer_and_nowhere_else(model, batch):
    explained = whycam.explain(model, batch, STUDY_LAYERS, ["gradcam", "hirescam"])
    for layer, same in [("layer4[-1]", True), ("layer3[-2]", False), ("layer2[-2]", False)]:
        one, other = (explained.map(method, layer) for method in ("gradcam", "hirescam"))
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5) is same


@pytest.mark.parametrize("layer", STUDY_LAYERS)
def test_hirescam_and_the_later_biases_add_up_to_the_logit(double, batch, layer):
    """Completeness of a piecewise linear network: Σ G·A + Σ b·∂y/∂b over all biases behind the layer is the logit."""
    network = copy.deepcopy(double)
    image = batch[:1].double()
    explained = whycam.explain(network, image, layer, "hirescam", 7)

    # The classifier and every BatchNorm that runs after the layer contribute their biases.
    later, started = [], False
    target = resolve_layer(network, layer).module

    def record(module, _inputs, output):
        nonlocal started
        if module is target:
            started = True
        elif started and isinstance(module, torch.nn.BatchNorm2d):
            output.retain_grad()
            later.append((module, output))
            return output.clone()  # the next ReLU works in place
        return None

    handles = [module.register_forward_hook(record) for module in network.modules()]
    logits = network(image)
    logits[0, 7].backward()
    for handle in handles:
        handle.remove()
    total = float(explained.map().sum()) + network.linear.bias[7].item()
    for module, output in later:
        scale = module.weight / (module.running_var + module.eps).sqrt()
        bias = module.bias - scale * module.running_mean
        total += (output.grad.sum((0, 2, 3)) * bias).sum().item()
    assert len(later) == {"layer2[-2]": 12, "layer3[-2]": 7, "layer4[-1]": 0}[layer]
    assert total == pytest.approx(logits[0, 7].item(), abs=1e-10)


def test_leading_eigenvector_with_a_close_one_in_other_channels():
    """The largest diagonal entry belongs to the second eigenvector; products with the matrix stay in its subspace."""
    first = torch.full((100,), 0.1, dtype=torch.float64)
    gram = torch.block_diag(torch.outer(first, first), torch.tensor([[0.99]], dtype=torch.float64))[None]
    found = leading_eigenvector(gram)[0]
    assert abs(float(found[:100] @ first)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("size", [4, 49, 130])
def test_leading_eigenvector_for_any_gap_to_the_second_one(size):
    ratios = torch.tensor([0.0, 0.5, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-8], dtype=torch.float64)
    generator = torch.Generator().manual_seed(size)
    bases = torch.linalg.qr(torch.randn(len(ratios), size, size, dtype=torch.float64, generator=generator)).Q
    values = torch.rand(len(ratios), size, dtype=torch.float64, generator=generator) * ratios[:, None]
    values[:, 0], values[:, 1] = 1, ratios
    grams = 1e-6 * torch.einsum("bij,bj,bkj->bik", bases, values, bases)
    found = leading_eigenvector(grams)
    # The error of an eigenvector is rounding divided by the gap between the two largest eigenvalues.
    error = (found - bases[:, :, 0] * (found * bases[:, :, 0]).sum(1, keepdim=True)).norm(dim=1)
    assert (error <= 1e-11 / (1 - ratios)).all(), error
    assert found.norm(dim=1) == pytest.approx(torch.ones(len(ratios)), abs=1e-12)


def test_leading_eigenvector_of_zeros_is_finite():
    assert leading_eigenvector(torch.zeros(2, 9, 9, dtype=torch.float64)).isfinite().all()
