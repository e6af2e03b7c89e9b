"""How far rounding takes a map from its float64 self, per type; and that differentiable maps have the right slope."""

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

# The mean error of a map in units of its mean size and of the type's machine epsilon (float32 1.2e-7, float16 9.8e-4,
# bfloat16 7.8e-3). Most maps lose one to three of it; these are differences of scores, which lose more.
TOLERANCE = 8.0
TOLERANCES = {
    "ablationcam": 30.0,  # what a channel takes from the score, a small difference
    "augmented(ablationcam)": 30.0,
    "groupcam": 30.0,  # what a group brings back of the score
    "reciprocam": 200.0,  # what a single position adds to a probability
    "smoothgrad(n=2)": 20.0,  # the noisy images are rounded too
    "integratedgradients(steps=2)": 20.0,
}
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip
# CAM needs another layer, the controls know no network.
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
def test_a_type_s_rounding(exact, kind):
    module, images, expected = exact
    dtype, mixed = TYPES[kind]
    network = copy.deepcopy(module).to(dtype)
    with torch.autocast("cpu", mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, images.to(dtype), "conv", TABLED, 1)
    epsilon = torch.finfo(mixed or dtype).eps
    for key, raw in expected.maps.items():
        actual = explained.maps[key]
        assert actual.dtype == torch.float32
        lost = float((actual.double() - raw).abs().mean() / raw.abs().mean()) / epsilon
        assert lost < TOLERANCES.get(key[0], TOLERANCE), (key[0], lost)
    # The type was really used: were it not, nothing would be lost beyond float32's own rounding.
    error = (explained.map("hirescam").double() - expected.map("hirescam")).abs().max()
    assert float(error) > 1e-2 * epsilon * float(expected.map("hirescam").abs().max())


def test_the_last_layer_is_recognized_under_autocast(loaded, batch):
    """CAM is there, and Ablation-CAM has its closed form: nothing runs but the capture."""
    model, images = loaded[0], batch[:2]
    exact = whycam.explain(model, images, "layer4[-1]", ["cam", "ablationcam"], 1)
    explained = None

    def run():
        nonlocal explained
        with torch.autocast("cpu", torch.bfloat16):
            explained = whycam.explain(model, images, "layer4[-1]", ["cam", "ablationcam"], 1)

    assert count_images(model.linear, run) == len(images)
    for method in ("cam", "ablationcam"):
        lost = (explained.map(method) - exact.map(method)).abs().mean() / exact.map(method).abs().mean()
        assert lost < 0.05, method
    # The layer before is none that a mean and a linear layer follow, however coarse the comparison.
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(whycam.WhycamError, match="CAM needs a layer that is"):
        whycam.explain(model, images, "layer4[-2]", "cam", 1)


class Smooth(nn.Module):
    """A network with derivatives of every order, one of whose weights is a plain tensor."""

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
def test_a_differentiable_map_has_the_slope_that_it_has(method):
    """`torch.autograd.gradcheck` in a weight before the layer and in the images."""
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


def test_the_check_notices_a_wrong_slope():
    @whycam.cam.method("Half", paper="none")
    def half(trace):
        """Grad-CAM with half of its graph cut."""
        return (trace.gradients.detach() * trace.activations).sum(dim=1)

    try:
        with pytest.raises(GradcheckError, match=r"Jacobian mismatch|Gradients failed"):
            test_a_differentiable_map_has_the_slope_that_it_has("half")
    finally:
        del METHODS["half"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_main_axis_has_its_sign_from_more_than_rounding(dtype):
    """Behind a LayerNorm channels add up to zero but for rounding, which another batch or device does otherwise."""
    features = nn.functional.layer_norm(torch.randn(8, 16, 48, generator=torch.Generator().manual_seed(0)), (48,))
    features = features.to(dtype).transpose(1, 2).reshape(8, 48, 4, 4)
    expected = principal_map(features)
    for seed in range(5):
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        actual = principal_map(features * (1 + 2 * torch.finfo(dtype).eps * noise))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    # A gain of its own for each channel gives it a sum, and that decides as before.
    gained = features * torch.linspace(0.5, 1.5, 48, dtype=dtype).view(48, 1, 1)
    mine, total = principal_map(gained).flatten(1), gained.sum(1).flatten(1)
    assert ((mine - mine.mean(1, keepdim=True)) * total).sum(1).min() > 0
