"""What users of the classes rely on: hooks for subclasses, options, a model that stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compat_networks import ALL, classes, everything, images, small
from torch import nn

import whycam
from whycam import WhycamError
from whycam.compat import pytorch_grad_cam as compat
from whycam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from whycam.compat.pytorch_grad_cam.utils.model_targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputSoftmaxTarget,
    RawScoresOutputTarget,
)

METHODS = {
    "GradCAM": "gradcam", "HiResCAM": "hirescam", "GradCAMElementWise": "gradcamelementwise", "LayerCAM": "layercam",
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_class_gives_float32_maps_and_leaves_the_model_as_it_was(name):
    model = small().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = everything(model)
    with getattr(compat, name)(model, [model.conv2]) as cam:
        maps = cam(input_tensor=images(), targets=None)
    assert maps.shape == (3, 12, 16)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert maps.max() > 0.5
    assert everything(model) == before


@pytest.mark.parametrize("name", ALL)
def test_an_exception_in_a_target_leaves_the_model_as_it_was(name):
    def target(_output):
        raise ZeroDivisionError

    model = small().train()
    before = everything(model)
    cam = getattr(compat, name)(model, [model.conv2])
    try:
        cam(images(), [target] * 3)
    except ZeroDivisionError:
        pass
    else:
        assert name in {"EigenCAM", "FEM", "KPCA_CAM", "RandomCAM"}  # these ask no target
    assert everything(model) == before


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_its_images_one_by_one(name):
    model = small().eval()
    cam = getattr(compat, name)(model, [model.act2])
    together = cam(images(), classes(0, 3, 1))
    for index, target in enumerate(classes(0, 3, 1)):
        alone = cam(images()[index : index + 1], [target])
        if name != "RandomCAM":
            np.testing.assert_allclose(together[index], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_classes_are_the_native_methods_and_grad_cams_post_processing(name):
    model = small().eval()
    raw = whycam.explain(model, images(), "conv2", METHODS[name], [0, 3, 1]).map()
    expected = scale_cam_image(scale_cam_image(raw.relu().numpy(), (16, 12)))
    actual = getattr(compat, name)(model, [model.conv2])(images(), classes(0, 3, 1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


class Averaged(compat.BaseCAM):
    """A user's method, written for numpy."""

    def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
        assert isinstance(activations, np.ndarray)
        assert isinstance(grads, np.ndarray)
        assert isinstance(target_layer, nn.Module)
        assert len(targets) == len(input_tensor) == len(activations)
        return grads.mean(axis=(2, 3))


class Sliced(compat.GradCAM):
    """Another, which overrides the map and uses what it overrides."""

    def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):
        assert isinstance(activations, np.ndarray)
        weights = super().get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        assert isinstance(weights, np.ndarray)
        whole = super().get_cam_image(input_tensor, target_layer, targets, activations, grads, eigen_smooth)
        assert isinstance(whole, np.ndarray)
        np.testing.assert_allclose((weights[:, :, None, None] * activations).sum(1), whole, rtol=1e-4, atol=1e-7)
        return whole


class Largest(compat.GradCAM):
    """Another, which joins layers in its own way, at a size of its own."""

    def get_target_width_height(self, input_tensor):
        return 8, 6

    def aggregate_multi_layers(self, cam_per_target_layer):
        return np.concatenate(cam_per_target_layer, axis=1).max(axis=1)


def test_subclasses_are_handed_numpy():
    model = small().eval()
    layers = [model.conv2, model.conv]
    plain = compat.GradCAM(model, layers)(images(), None)
    np.testing.assert_allclose(Averaged(model, layers)(images(), None), plain, rtol=0, atol=1e-5)
    np.testing.assert_allclose(Sliced(model, layers)(images(), None), plain, rtol=0, atol=1e-5)
    assert Largest(model, layers)(images(), None).shape == (3, 6, 8)
    with pytest.raises(NotImplementedError, match="BaseCAM must define get_cam_weights or get_cam_image"):
        compat.BaseCAM(model, layers)(images(), None)


class Curved(compat.BaseCAM):
    """A user's method that differentiates once more."""

    def __init__(self, model, target_layers):
        super().__init__(model, target_layers, compute_input_gradient=True, detach=False)

    def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
        (product,) = torch.autograd.grad(grads, activations, grad_outputs=activations, retain_graph=True)
        return (grads - 0.5 * product).mean(dim=(2, 3)).detach().numpy()


def test_a_subclass_can_keep_the_graph():
    model = small().eval()
    before = everything(model)
    targets = [ClassifierOutputSoftmaxTarget(index) for index in (0, 3, 1)]
    maps = Curved(model, [model.conv2])(images(), targets)
    np.testing.assert_allclose(maps, compat.ShapleyCAM(model, [model.conv2])(images(), targets), rtol=0, atol=1e-4)
    assert everything(model) == before


def test_six_augmented_copies_are_one_batch():
    model, batches = small().eval(), []
    model.register_forward_hook(lambda _module, _inputs, output: batches.append(len(output)))
    cam = compat.GradCAM(model, [model.conv2])
    smooth = cam(images(), None, aug_smooth=True)
    assert batches == [18]
    one_by_one = []
    for flip in (False, True):
        for factor in (0.9, 1.0, 1.1):
            x = images().flip(3) if flip else images()
            maps = cam(x * factor, None)
            one_by_one.append(maps[:, :, ::-1] if flip else maps)
    np.testing.assert_allclose(smooth, np.mean(one_by_one, axis=0), rtol=0, atol=1e-5)
    assert cam.outputs.shape == (3, 5)


def test_all_layers_are_one_forward():
    model, calls = small().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    compat.GradCAM(model, [model.conv, model.norm, model.conv2])(images(), None)
    compat.RefineCAM(model, [model.conv, model.norm, model.conv2])(images(), None)
    assert len(calls) == 2


def test_the_same_layer_twice_and_an_in_place_relu_behind_it():
    model = small().eval()
    once = compat.HiResCAM(model, [model.norm])
    single = once(images(), classes(0, 3, 1))
    twice = compat.HiResCAM(model, [model.norm, model.norm])(images(), classes(0, 3, 1))
    np.testing.assert_allclose(twice, single, rtol=0, atol=1e-5)
    assert float(once.activations_and_grads.activations[0].min()) < 0  # the layer's own output, not the ReLU's


@pytest.mark.parametrize("aug_smooth", [False, True])
def test_targets_are_counted(aug_smooth):
    model = small().eval()
    for count in (1, 4):
        with pytest.raises(WhycamError, match=f"{count} targets are given for 3 images; give one each"):
            compat.GradCAM(model, [model.conv2])(images(), classes(*range(count)), aug_smooth=aug_smooth)
        with pytest.raises(WhycamError, match=f"{count} targets are given for 3 images"):
            compat.EigenCAM(model, [model.conv2])(images(), classes(*range(count)), aug_smooth=aug_smooth)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_mistakes_are_named():
    model = small().eval()
    with pytest.raises(WhycamError, match=r"target_layers is a list of modules, got a Conv2d: write \[layer\]"):
        compat.GradCAM(model, model.conv)
    with pytest.raises(WhycamError, match=r"RawScoresOutputTarget must return one number per image.*\(5,\)"):
        compat.GradCAM(model, [model.conv])(images(), [RawScoresOutputTarget()] * 3)
    for cam in (compat.GradCAM, compat.EigenCAM):
        with pytest.raises(WhycamError, match="did not run in the forward pass"):
            cam(model, [nn.Conv2d(3, 3, 1)])(images(), None)
    with pytest.raises(WhycamError, match="TorchScript"):
        compat.GradCAM(torch.jit.trace(model, images()), [model.conv])


def test_with_hides_no_exception():
    model = small().eval()
    with pytest.raises(IndexError), compat.GradCAM(model, [model.conv2]) as cam:
        cam(images(), classes(0, 1, 99))


def test_a_single_logit():
    model = small().eval()
    model.head = nn.Linear(8, 1)
    x = images()
    positive = compat.GradCAM(model, [model.conv2])(x, [BinaryClassifierOutputTarget(1)] * 3)
    negative = compat.GradCAM(model, [model.conv2])(x, [BinaryClassifierOutputTarget(0)] * 3)
    np.testing.assert_allclose(positive, compat.GradCAM(model, [model.conv2])(x, None), rtol=0, atol=1e-6)
    assert not np.allclose(positive, negative)


def test_random_is_seeded():
    model = small().eval()
    cam = compat.RandomCAM(model, [model.conv2])
    first = cam(images(), None)
    torch.rand(1)
    np.testing.assert_array_equal(cam(images(), None), first)
    cam.seed = 1
    assert not np.allclose(cam(images(), None), first)


def test_volumes_work_for_every_method():
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    x = torch.randn(2, 1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    for name in [name for name in ALL if name not in {"FullGrad", "SESS"}]:
        assert getattr(compat, name)(model, [model[0]])(x, None).shape == (2, 4, 6, 5), name


class Tokens(nn.Module):
    """A class token and a 3×4 grid."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return self.head(self.norm(self.block(tokens))[:, 0])


def test_tokens_with_and_without_a_reshape_transform():
    model = Tokens().eval()

    def reshape(tensor):
        return compat.reshape_transforms.vit_reshape_transform(tensor, height=3, width=4)

    for name in ["GradCAM", "ShapleyCAM", "EigenCAM", "ScoreCAM"]:
        given = getattr(compat, name)(model, [model.block], reshape_transform=reshape)(images(), None)
        found = getattr(compat, name)(model, [model.block])(images(), None)
        np.testing.assert_allclose(given, found, rtol=0, atol=1e-6)
    layer = compat.AblationLayerVit()
    maps = compat.AblationCAM(model, [model.norm], reshape_transform=reshape, ablation_layer=layer)(images(), None)
    assert maps.shape == (3, 12, 16)


def test_finer_and_refine():
    model = small().eval()
    logits = model(images()).detach()
    order = (logits - logits.max(1, keepdim=True).values).abs().argsort(1).tolist()
    targets = [compat.model_targets.FinerWeightedTarget(row[0], row[1:3], 0.7) for row in order]
    expected = compat.LayerCAM(model, [model.conv2])(images(), targets)
    finer = compat.FinerCAM(model, [model.conv2], base_method=compat.LayerCAM)
    actual = finer(images(), None, alpha=0.7, comparison_categories=[1, 2])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    layers = [model.conv, model.conv2]
    product = np.prod([compat.GradCAM(model, [layer])(images(), None) for layer in layers], axis=0)
    refined = compat.RefineCAM(model, layers, base_method=compat.GradCAM)(images(), None)
    np.testing.assert_allclose(refined, scale_cam_image(product), rtol=0, atol=1e-5)


def test_many_calls_keep_nothing():
    model = small().eval()
    before = everything(model)
    for _ in range(50):
        compat.GradCAM(model, [model.conv2])(images(1), None)
    assert everything(model) == before


def test_activations_and_gradients_when_the_caller_runs_the_backward_pass():
    model = small().eval()
    layers = [model.conv, model.conv2]
    keeper = compat.ActivationsAndGradients(model, layers, None)
    x = images().requires_grad_()
    keeper(x)[:, 0].sum().backward()
    assert [tuple(a.shape) for a in keeper.activations] == [(3, 6, 12, 16), (3, 8, 6, 8)]
    cam = compat.GradCAM(model, layers)
    cam(images(), classes(0, 0, 0))
    for ours, theirs in zip(keeper.gradients, cam.activations_and_grads.gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    keeper.release()
    assert keeper.activations == []
    assert all(not module._forward_hooks for module in model.modules())
