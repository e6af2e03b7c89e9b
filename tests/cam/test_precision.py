"""Rounding errors of maps per data type, compared with float64; gradients of differentiable maps."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from networks import Residual, count_images, make_network
from torch import nn
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F

import whycam
from whycam.cam import METHODS
from whycam.cam.methods.activation import principal_map

# The bound for a map's mean error, relative to its mean magnitude, in units of the type's machine epsilon (float32
# 1.2e-7, float16 9.8e-4, bfloat16 7.8e-3). Most errors are one to three units. Small differences of scores lose more.
TOLERANCE = 8.0
TOLERANCES = {
    "ablationcam": 30.0,  # the drop of the score without a channel
    "augmented(ablationcam)": 30.0,
    "groupcam": 30.0,  # the score that a group restores
    "reciprocam": 200.0,  # the probability from a single position
    "smoothgrad(n=2)": 20.0,  # the noisy images are rounded too
    "integratedgradients(steps=2)": 20.0,
}
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip
# CAM needs another layer; the controls ignore the network.
TABLED = [FEW.get(name, name) for name in METHODS if name not in ("cam", "random", "sobel", "center")]
TABLED += ["augmented(gradcam)", "noisy(gradcam, n=2)", "augmented(ablationcam)"]

TYPES = {
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast to float16": (torch.float32, torch.float16),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
}


@pytest.fixture(scope="module")
def exact():
    module, images = make_network(Residual, batch=4, size=8)
    return module, images, whycam.explain(module, images, "conv", TABLED, 1)


@pytest.mark.parametrize("kind", TYPES)
def test_rounding_error_per_type(exact, kind):
    module, images, expected = exact
    dtype, mixed = TYPES[kind]
    network = copy.deepcopy(module).to(dtype)
    with torch.autocast("cpu", mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, images.to(dtype), "conv", TABLED, 1)
    epsilon = torch.finfo(mixed or dtype).eps
    for key, raw in expected.maps.items():
        actual = explained.maps[key]
        assert actual.dtype == torch.float32
        error_in_epsilons = float((actual.double() - raw).abs().mean() / raw.abs().mean()) / epsilon
        assert error_in_epsilons < TOLERANCES.get(key[0], TOLERANCE), (key[0], error_in_epsilons)
    # The type was really used: otherwise the error would only be float32's rounding.
    error = (explained.map("hirescam").double() - expected.map("hirescam")).abs().max()
    assert float(error) > 1e-2 * epsilon * float(expected.map("hirescam").abs().max())


def test_the_last_layer_is_recognized_under_autocast(loaded, batch):
    """CAM accepts the layer, and Ablation-CAM uses its closed form: only the capture runs."""
    model, images = loaded[0], batch[:2]
    exact = whycam.explain(model, images, "layer4[-1]", ["cam", "ablationcam"], 1)
    explained = None

    def run():
        nonlocal explained
        with torch.autocast("cpu", torch.bfloat16):
            explained = whycam.explain(model, images, "layer4[-1]", ["cam", "ablationcam"], 1)

    assert count_images(model.linear, run) == len(images)
    for method in ("cam", "ablationcam"):
        error_in_epsilons = (explained.map(method) - exact.map(method)).abs().mean() / exact.map(method).abs().mean()
        assert error_in_epsilons < 0.05, method
    # The layer before it is not followed by a mean and a linear layer, and is not recognized, also in bfloat16.
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(whycam.WhycamError, match="CAM needs a layer that is"):
        whycam.explain(model, images, "layer4[-2]", "cam", 1)


class Smooth(nn.Module):
    """A network with derivatives of every order; one of its weights is a plain tensor."""

    def __init__(self):
        super().__init__()
        self.weight = torch.empty(0)
        self.layer = nn.Identity()
        self.next = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(F.conv2d(x, self.weight, padding=1).tanh())
        return self.head(self.next(y).tanh().mean((2, 3)))


DIFFERENTIABLE = sorted(
    name for name, known in METHODS.items() if known.scope != "input" and "reruns" not in known.needs and name != "cam"
)


@pytest.mark.parametrize("method", [*DIFFERENTIABLE, "eigen(gradcam)"])
def test_gradient_of_differentiable_maps(method):
    """`torch.autograd.gradcheck` with respect to a weight before the layer and to the images."""
    torch.manual_seed(0)
    network = Smooth().double()
    weight = (0.5 * torch.randn(3, 2, 3, 3, dtype=torch.float64)).requires_grad_()
    images = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def maps(weight, images):
        network.weight = weight
        return whycam.explain(network, images, "layer", method, 1, differentiable=True).map()

    assert torch.autograd.gradcheck(maps, (weight, images), fast_mode=True, atol=1e-6)
    assert weight.grad is None
    assert images.grad is None


def test_gradcheck_notices_a_wrong_gradient():
    @whycam.cam.method("Half", paper="none")
    def half(trace):
        """Grad-CAM with detached gradients, so its own gradient is wrong."""
        return (trace.gradients.detach() * trace.activations).sum(dim=1)

    try:
        with pytest.raises(GradcheckError, match=r"Jacobian mismatch|Gradients failed"):
            test_gradient_of_differentiable_maps("half")
    finally:
        del METHODS["half"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sign_of_a_principal_axis_does_not_depend_on_rounding(dtype):
    """Behind a LayerNorm the channels sum to rounding errors, which differ between batches and devices."""
    features = nn.functional.layer_norm(torch.randn(8, 16, 48, generator=torch.Generator().manual_seed(0)), (48,))
    features = features.to(dtype).transpose(1, 2).reshape(8, 48, 4, 4)
    expected = principal_map(features)
    for seed in range(5):
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        actual = principal_map(features * (1 + 2 * torch.finfo(dtype).eps * noise))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    # With a gain per channel the sum is not zero, and the sign makes the map correlate with it.
    gained = features * torch.linspace(0.5, 1.5, 48, dtype=dtype).view(48, 1, 1)
    maps, total = principal_map(gained).flatten(1), gained.sum(1).flatten(1)
    assert ((maps - maps.mean(1, keepdim=True)) * total).sum(1).min() > 0
