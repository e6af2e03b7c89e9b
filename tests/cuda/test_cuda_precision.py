"""Half precision on the GPU, by type or by autocast: the network runs in it, and maps are computed in float32."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from map_errors import correlation, relative_error
from torch import nn

import whycam

METHODS = ["gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "kpcacam", "fem",
           "finercam", "shapleycam", "smoothgradcam++", "augmented(gradcam)", "random", "inputgradient", "fullgrad",
           "guidedbackprop", "guidedgradcam"]  # fmt: skip
TYPES = {
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast to float16": (torch.float32, torch.float16),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
}
# The smallest allowed correlation with the float32 map. Gradients of the pixels pass every ReLU, so they lose more.
PIXELS = ("inputgradient", "guidedbackprop", "guidedgradcam")
MIN_CORRELATION = {torch.float16: 0.99, torch.bfloat16: 0.95}
MIN_CORRELATION_OF_PIXELS = {torch.float16: 0.95, torch.bfloat16: 0.6}


@pytest.fixture(scope="module")
def single(model, batch):
    return whycam.explain(model, batch[:3], "layer3[-2]", METHODS, [3, 9, 0])


@pytest.mark.parametrize("kind", TYPES)
def test_maps_are_float32_and_close_to_full_precision(there, batch, device, single, kind):
    dtype, mixed = TYPES[kind]
    network, images = copy.deepcopy(there).to(dtype), batch[:3].to(device, dtype)
    with torch.autocast(device.type, mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, images, "layer3[-2]", METHODS, [3, 9, 0])
    half = mixed or dtype
    for key, raw in single.maps.items():
        actual = explained.maps[key]
        assert actual.dtype == torch.float32
        assert bool(actual.isfinite().all()), key
        least = (MIN_CORRELATION_OF_PIXELS if key[0] in PIXELS else MIN_CORRELATION)[half]
        # The sign of a principal axis follows a correlation; if that is close to 0, rounding can change the sign.
        assert correlation(actual, raw, signed=key[0] != "eigencam") > least, key
    # The type was really used: otherwise there would be no error.
    assert relative_error(explained.map("gradcam"), single.map("gradcam")) > 1e-5


@pytest.mark.parametrize("kind", TYPES)
def test_reruns_use_the_type_of_the_network(there, batch, device, kind):
    dtype, mixed = TYPES[kind]
    methods = ["scorecam", "groupcam(groups=4)", "reciprocam", "ablationcam", "noisy(gradcam, n=2)"]
    small = batch[:2, :, 8:24, 8:24]
    expected = whycam.explain(there, small.to(device), "layer1[-1]", methods, 3)
    network = copy.deepcopy(there).to(dtype)
    dtypes = set()
    handle = network.layer4.register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))
    with torch.autocast(device.type, mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, small.to(device, dtype), "layer1[-1]", methods, 3)
    handle.remove()
    assert dtypes == {mixed or dtype}
    for key, raw in explained.maps.items():
        assert raw.dtype == torch.float32
        assert bool(raw.isfinite().all()), key
    assert correlation(explained.map("scorecam"), expected.map("scorecam")) > 0.9
    assert correlation(explained.map("noisy(gradcam, n=2)"), expected.map("noisy(gradcam, n=2)")) > 0.9


class Large(nn.Module):
    """An activation whose sums and squares overflow in float16 (its largest number is 65504)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        nn.init.constant_(self.layer.bias, 2000.0)
        with torch.no_grad():
            self.head.weight.div_(100)

    def forward(self, x):
        return self.head(self.layer(x).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", ["float16", "autocast to float16"])
def test_sums_do_not_overflow(device, kind):
    dtype, mixed = TYPES[kind]
    torch.manual_seed(0)
    network, images = Large().to(device), torch.randn(2, 3, 8, 8).to(device)
    methods = ["gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "fem", "cam"]
    expected = whycam.explain(network, images, "layer", methods, 1)
    with torch.autocast(device.type, mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network.to(dtype), images.to(dtype), "layer", methods, 1)
    for key, raw in expected.maps.items():
        assert bool(explained.maps[key].isfinite().all()), key
        # FEM counts positions above a bound, the others find an axis: the values hardly differ in float16.
        if key[0] not in ("fem", "eigencam", "eigengradcam"):
            assert relative_error(explained.maps[key], raw) < 1e-2, key
