"""Every registered method gives the same maps on the GPU as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import dinov2, swin, vit
from map_errors import assert_maps_close, relative_error, set_tensorfloat32

import whycam
from whycam.cam import METHODS

# Methods that run the network for each channel or position get smaller images, and layers with few channels or a short
# tail.
LAYERS = {"scorecam": "layer1[-1]", "sscam": "layer1[-1]", "iscam": "layer1[-1]", "groupcam": "layer3[-2]",
          "ablationcam": "layer4[-2]", "reciprocam": "layer3[-2]"}  # fmt: skip
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=3)",
       "integratedgradients": "integratedgradients(steps=3)"}  # fmt: skip
TABLED = [FEW.get(name, name) for name in METHODS]
TABLED += ["sscam(n=1, on='input')", "reciprocam(gaussian=True, baseline='empty')", "ablationcam(relative='none')",
           "augmented(gradcam)", "noisy(gradcam, n=3)", "augmented(ablationcam)", "noisy(refinecam, n=2)",
           "augmented(fullgrad)", "eigen(gradcam)", "eigen(scorecam)", "noisy(augmented(shapleycam), n=2)"]  # fmt: skip
TARGETS = torch.tensor([3, 9])

# Bounds for ‖a − b‖ / ‖b‖. With float64 on both devices the error is rounding alone.
IN_DOUBLE = 1e-9
# float32 on the device, float64 on the CPU. Rounding is 1e-6, but it can switch a ReLU, which changes the result by a
# step (observed: 2e-4), and gradients through the whole network pass many ReLUs.
IN_SINGLE = {"": 1e-3, "fem": 1e-2} | dict.fromkeys(  # FEM counts positions above a bound
    ["inputgradient", "guidedbackprop", "guidedgradcam", "integratedgradients(steps=3)", "smoothgrad(n=3)", "fullgrad",
     "augmented(fullgrad)"], 1e-2,
)  # fmt: skip


def case_for(name, batch):
    """Two images and the layers to explain for a method."""
    costly = next((layer for inner, layer in LAYERS.items() if inner in name), None)
    if costly is not None:
        return batch[:2, :, 8:24, 8:24], [costly]
    return batch[:2], ["layer1[-1]", "layer4[-1]"] if "refinecam" in name else [
        "layer4[-1]" if name == "cam" else "layer3[-2]"
    ]


@pytest.fixture(scope="module")
def expected(exact, batch):
    """name → maps on the CPU in float64, computed at the first call and cached."""
    cache = {}

    def maps_of(name):
        if name not in cache:
            images, layers = case_for(name, batch)
            cache[name] = whycam.explain(exact, images.double(), layers, name, TARGETS).maps
        return cache[name]

    return maps_of


def test_the_table_has_every_method():
    assert {name.split("(")[0] for name in TABLED} >= set(METHODS)


@pytest.mark.parametrize("name", TABLED)
def test_float64_maps_equal_those_on_the_cpu(exact_there, batch, device, expected, name):
    """Also for methods that draw at random, because the draws are made on the CPU from the seed alone."""
    images, layers = case_for(name, batch)
    explained = whycam.explain(exact_there, images.double().to(device), layers, name, TARGETS)
    assert {raw.device.type for raw in explained.maps.values()} == {device.type}
    assert_maps_close(explained.maps, expected(name), IN_DOUBLE)


@pytest.mark.parametrize("name", TABLED)
def test_float32_maps_are_close_to_float64_on_the_cpu(there, batch, device, expected, name):
    images, layers = case_for(name, batch)
    explained = whycam.explain(there, images.to(device), layers, name, TARGETS)
    assert {raw.dtype for raw in explained.maps.values()} == {torch.float32}
    assert_maps_close(explained.maps, expected(name), IN_SINGLE)


def test_several_layers_and_targets_at_once(there, exact, batch, device):
    layers, methods = ["layer2[-2]", "layer3[-2]", "layer4[-1]"], ["gradcam", "hirescam", "layercam", "eigencam"]
    targets = {"predicted": None, "true": torch.arange(8)}
    here = whycam.explain(exact, batch.double(), layers, methods, targets)
    actual = whycam.explain(there, batch.to(device), layers, methods, targets)
    assert torch.equal(actual.predicted.cpu(), here.predicted)
    assert relative_error(actual.logits, here.logits) < 1e-5
    assert_maps_close(actual.maps, here.maps, 1e-2)
    # Behind the last layer there is no ReLU, so the error is rounding alone.
    last = {key: raw for key, raw in here.maps.items() if key[1] == "layer4[-1]"}
    assert_maps_close({key: actual.maps[key] for key in last}, last, 1e-4)


@pytest.mark.parametrize("name", ["random", "smoothgrad(n=2)", "smoothgradcam++", "sscam(n=1)", "noisy(gradcam, n=2)"])
def test_draws_depend_on_the_seed_and_not_on_the_device_s_generator(there, images, name):
    maps = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(maps))
        maps.append(whycam.explain(there, images[:2, :, 8:24, 8:24], "layer1[-1]", name, 3, seed=seed).map())
    assert relative_error(maps[1], maps[0]) < 1e-3
    assert relative_error(maps[2], maps[0]) > 1e-2


BUILD = {"vit": (vit, (64, 64)), "dinov2": (dinov2, (56, 56)), "swin": (swin, (64, 64))}
OF_TOKENS = ["gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "shapleycam", "finercam", "eigencam",
             "kpcacam", "fem", "scorecam", "groupcam", "ablationcam", "reciprocam", "fullgrad", "inputgradient",
             "random", "augmented(gradcam)", "noisy(gradcam, n=2)"]  # fmt: skip


@pytest.mark.parametrize("kind", BUILD)
def test_token_models(kind, device):
    network, pixels = of_tokens(kind)
    here = whycam.explain(network, pixels, methods=OF_TOKENS, targets=[1, 4])
    actual = whycam.explain(copy.deepcopy(network).to(device), pixels.to(device), methods=OF_TOKENS, targets=[1, 4])
    assert actual.layers == here.layers
    assert_maps_close(actual.maps, here.maps, 1e-8)


@pytest.mark.parametrize("kind", BUILD)
def test_token_models_in_single_precision(kind, device):
    network, pixels = of_tokens(kind)
    here = whycam.explain(network, pixels, targets=[1, 4])
    actual = whycam.explain(network.float().to(device), pixels.float().to(device), targets=[1, 4])
    assert_maps_close(actual.maps, here.maps, 1e-4)


def of_tokens(kind):
    """A transformer with random weights and two images for it, in float64."""
    build, size = BUILD[kind]
    torch.manual_seed(0)
    return build().double().eval(), torch.randn(2, 3, *size, dtype=torch.float64)


TOGETHER = ["gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "kpcacam", "fem",
            "shapleycam", "finercam", "augmented(gradcam)", "noisy(gradcam, n=2)", "fullgrad",
            "inputgradient", "guidedgradcam", "random"]  # fmt: skip


@pytest.mark.parametrize(("double", "bound"), [(True, 1e-9), (False, {**IN_SINGLE, "": 1e-2})])
def test_map_of_an_image_does_not_depend_on_the_batch(exact_there, there, batch, device, double, bound):
    network, pixels = (exact_there, batch.double()) if double else (there, batch)
    pixels, layers = pixels[:4].to(device), ["layer3[-2]", "layer4[-1]"]
    together = whycam.explain(network, pixels, layers, TOGETHER)
    for index in (0, 3):
        alone = whycam.explain(network, pixels[index : index + 1], layers, TOGETHER)
        assert_maps_close({key: raw[index : index + 1] for key, raw in together.maps.items()}, alone.maps, bound)


def test_pooled_linear_head_is_recognized_with_tensorfloat32(there, exact, spec, bundled, batch, device):
    """CAM and Ablation-CAM's closed form compare the logits with a sum that they compute; TensorFloat-32 is coarser.

    For one of these 200 images TensorFloat-32 changes a logit by more than 1e-4 of the sum of its absolute terms.
    """
    set_tensorfloat32(True, "high")  # a fixture in conftest.py restores both
    methods, images = ["cam", "ablationcam", "gradcam"], spec.preprocess(bundled.read(range(200))).to(device)
    here = whycam.explain(exact, batch.double(), "layer4[-1]", methods, 3)
    ran = []
    handle = there.linear.register_forward_hook(lambda _m, inputs, _o: ran.append(len(inputs[0])))
    try:
        actual = whycam.explain(there, images, "layer4[-1]", methods, 3)
    finally:
        handle.remove()
    assert ran == [len(images)]
    assert_maps_close({key: raw[: len(batch)] for key, raw in actual.maps.items()}, here.maps, 3e-2)
    # The tail runs in TensorFloat-32 too.
    small = batch[:2, :, 8:24, 8:24]
    one = whycam.explain(exact, small.double(), "layer4[-2]", "ablationcam", 3)
    other = whycam.explain(there, small.to(device), "layer4[-2]", "ablationcam", 3)
    assert_maps_close(other.maps, one.maps, 0.2)
