"""The pytorch-grad-cam interface with a network on the GPU: NumPy results are the same as from the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from compat_networks import ALL, classes, everything, images, small

from whycam.compat import pytorch_grad_cam as compat
from whycam.compat.pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
from whycam.compat.pytorch_grad_cam.metrics.road import ROADCombined, ROADMostRelevantFirst
from whycam.compat.pytorch_grad_cam.utils.image import show_cam_on_image
from whycam.compat.pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    SemanticSegmentationTarget,
)


@pytest.fixture
def pair(device):
    """The network and the images on the CPU and on the device, in float64, so that rounding errors are negligible."""
    model = small().double().eval()
    return (model, images().double()), (copy.deepcopy(model).to(device), images().double().to(device))


def on_both(pair, name, call):
    return [call(getattr(compat, name)(model, [model.conv2]), pixels) for model, pixels in pair]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("targets", [None, "classes"])
def test_every_class(pair, name, targets):
    far = pair[1][0]
    before = everything(far)
    chosen = classes(0, 3, 1) if targets else None
    here, there = on_both(pair, name, lambda cam, pixels: cam(input_tensor=pixels, targets=chosen))
    assert isinstance(there, np.ndarray)
    assert there.dtype == np.float32
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    assert everything(far) == before


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM", "ScoreCAM", "AblationCAM", "XGradCAM"])
@pytest.mark.parametrize("option", ["aug_smooth", "eigen_smooth"])
def test_smoothing(pair, name, option):
    if name == "EigenCAM" and option == "eigen_smooth":
        pytest.skip("EigenCAM is a principal component already")
    here, there = on_both(pair, name, lambda cam, pixels: cam(pixels, classes(0, 3, 1), **{option: True}))
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)


def test_images_on_the_cpu_are_moved_to_the_network(pair):
    (here, pixels), (there, _) = pair
    expected = compat.GradCAM(here, [here.conv2])(pixels, None)
    np.testing.assert_allclose(compat.GradCAM(there, [there.conv2])(pixels, None), expected, rtol=0, atol=1e-5)


def test_subclass_written_in_numpy(pair):
    class Mine(compat.GradCAM):
        def get_cam_weights(self, input_tensor, target_layer, target_category, activations, grads):
            assert isinstance(activations, np.ndarray)
            weights = np.maximum(grads, 0).mean(axis=(2, 3))
            return weights + super().get_cam_weights(input_tensor, target_layer, target_category, activations, grads)

    here, there = (Mine(model, [model.conv2])(pixels, classes(0, 3, 1)) for model, pixels in pair)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)


def test_reshape_transform_and_several_layers(pair):
    def swapped(tensor):
        return tensor.flip(-1)

    found = []
    for model, pixels in pair:
        with compat.LayerCAM(model, [model.conv, model.conv2], reshape_transform=swapped) as cam:
            found.append(cam(pixels, classes(0, 3, 1)))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", [CamMultImageConfidenceChange(), ROADMostRelevantFirst(60), ROADCombined((40, 80))])
def test_metrics(pair, metric):
    maps = np.random.default_rng(0).uniform(size=(3, 12, 16)).astype(np.float32)
    targets = [ClassifierOutputSoftmaxTarget(index) for index in (0, 3, 1)]
    (here, pixels), (there, far) = pair
    expected, actual = metric(pixels, maps, targets, here), metric(far, maps, targets, there)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_guided_backprop_and_feature_factorization(pair):
    (here, pixels), (there, far) = pair
    expected = compat.GuidedBackpropReLUModel(here, "cpu")(pixels[:1], 2)
    actual = compat.GuidedBackpropReLUModel(there, far.device)(far[:1], 2)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    found = [compat.DeepFeatureFactorization(model, model.act2, computation_on_concepts=model.head)(batch, 3)
             for model, batch in ((here.float(), pixels.float()), (there.float(), far.float()))]  # fmt: skip
    for actual, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_segmentation_target(device):
    found = []
    mask = np.zeros((12, 16), dtype=np.float32)
    mask[:6] = 1
    for place in ("cpu", device):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 1)
        ).double().to(place)  # fmt: skip
        cam = compat.GradCAM(network, [network[0]])
        found.append(cam(images().double().to(place), [SemanticSegmentationTarget(2, mask)] * 3))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)
    overlay = show_cam_on_image(np.full((12, 16, 3), 0.5, np.float32), found[1][0], use_rgb=True)
    assert overlay.dtype == np.uint8
