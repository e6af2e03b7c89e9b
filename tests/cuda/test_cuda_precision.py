"""Half precision on the GPU: the network in it or under autocast, the sums of a map in float32 all the same."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from near import alike, apart
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
# The least correlation with the float32 map. Gradients in the pixels go back through every ReLU there is.
PIXELS = ("inputgradient", "guidedbackprop", "guidedgradcam")
LEAST = {torch.float16: 0.99, torch.bfloat16: 0.95}
LEAST_OF_PIXELS = {torch.float16: 0.95, torch.bfloat16: 0.6}


@pytest.fixture(scope="module")
def single(model, batch):
    return whycam.explain(model, batch[:3], "layer3[-2]", METHODS, [3, 9, 0])


@pytest.mark.parametrize("kind", TYPES)
def test_maps_are_float32_and_like_the_full_precision_s(there, batch, device, single, kind):
    dtype, mixed = TYPES[kind]
    network, images = copy.deepcopy(there).to(dtype), batch[:3].to(device, dtype)
    with torch.autocast(device.type, mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, images, "layer3[-2]", METHODS, [3, 9, 0])
    half = mixed or dtype
    for key, raw in single.maps.items():
        actual = explained.maps[key]
        assert actual.dtype == torch.float32
        assert bool(actual.isfinite().all()), key
        least = (LEAST_OF_PIXELS if key[0] in PIXELS else LEAST)[half]
        # An axis has no sign of its own; where the one it is given hangs on a correlation near 0, rounding turns it.
        assert alike(actual, raw, signed=key[0] != "eigencam") > least, key
    # The type was really used: float32 would have lost nothing.
    assert apart(explained.map("gradcam"), single.map("gradcam")) > 1e-5


@pytest.mark.parametrize("kind", TYPES)
def test_what_reruns_the_network_does_so_in_its_own_type(there, batch, device, kind):
    dtype, mixed = TYPES[kind]
    methods = ["scorecam", "groupcam(groups=4)", "reciprocam", "ablationcam", "noisy(gradcam, n=2)"]
    small = batch[:2, :, 8:24, 8:24]
    expected = whycam.explain(there, small.to(device), "layer1[-1]", methods, 3)
    network = copy.deepcopy(there).to(dtype)
    seen = set()
    handle = network.layer4.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    with torch.autocast(device.type, mixed) if mixed is not None else nullcontext():
        explained = whycam.explain(network, small.to(device, dtype), "layer1[-1]", methods, 3)
    handle.remove()
    assert seen == {mixed or dtype}
    for key, raw in explained.maps.items():
        assert raw.dtype == torch.float32
        assert bool(raw.isfinite().all()), key
    assert alike(explained.map("scorecam"), expected.map("scorecam")) > 0.9
    assert alike(explained.map("noisy(gradcam, n=2)"), expected.map("noisy(gradcam, n=2)")) > 0.9


class Large(nn.Module):
    """An activation whose sums and squares float16 cannot hold (65504 is its largest number)."""

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
        # One counts positions above a bound, one finds an axis: of values that float16 hardly tells apart.
        if key[0] not in ("fem", "eigencam", "eigengradcam"):
            assert apart(explained.maps[key], raw) < 1e-2, key
