"""Score-CAM, Ablation-CAM, FullGrad and guided backpropagation against slow, direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compat_networks import images, small
from torch import nn
from torch.nn import functional as F

from whycam.compat import pytorch_grad_cam as compat
from whycam.compat.pytorch_grad_cam.ablation_cam_multilayer import AblationCAM as Together
from whycam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from whycam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

TARGETS = [ClassifierOutputTarget(index) for index in (0, 3, 1)]


def seen(model, layer):
    kept = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().clone()))
    with torch.no_grad():
        logits = model(images())
    handle.remove()
    return kept[0], logits


def processed(weights, activations):
    raw = (weights[:, :, None, None] * activations).sum(1).relu().numpy()
    return scale_cam_image(scale_cam_image(raw, (16, 12)))


@pytest.mark.parametrize("layer", ["conv2", "act2"])
def test_score_cam(layer):
    model = small().eval()
    activations, _ = seen(model, model.get_submodule(layer))
    activations[:, 2] = activations[:, 2]
    masks = F.interpolate(activations, size=(12, 16), mode="bilinear", align_corners=True)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    scores = torch.zeros(activations.shape[:2])
    with torch.no_grad():
        for image in range(3):
            for channel in range(activations.shape[1]):
                logits = model(images()[image : image + 1] * masks[image, channel])
                scores[image, channel] = logits[0, TARGETS[image].category]
    cam = compat.ScoreCAM(model, [model.get_submodule(layer)])
    cam.batch_size = 3
    expected = processed(scores.softmax(1), activations)
    np.testing.assert_allclose(cam(images(), TARGETS), expected, rtol=0, atol=1e-5)


def ablated(model, layer, off):
    """(B, C) scores without each channel, by running everything."""
    activations, logits = seen(model, layer)
    scores = torch.zeros(activations.shape[:2])
    for image in range(3):
        for channel in range(activations.shape[1]):
            changed = activations[image : image + 1].clone()
            changed[:, channel] = off(activations[image])
            handle = layer.register_forward_hook(lambda *_, changed=changed: changed)
            with torch.no_grad():
                scores[image, channel] = model(images()[image : image + 1])[0, TARGETS[image].category]
            handle.remove()
    original = torch.stack([row[target.category] for row, target in zip(logits, TARGETS, strict=True)])[:, None]
    return activations, (original - scores) / original


@pytest.mark.parametrize(
    ("layer", "off"),
    [
        ("act2", lambda _image: 0.0),  # in closed form
        ("act", lambda _image: 0.0),
        ("conv2", lambda image: image.min() - 1e7),
    ],
)
def test_ablation_cam(layer, off):
    model = small().eval()
    module = model.get_submodule(layer)
    activations, weights = ablated(model, module, off)
    for size in (3, 32):
        maps = compat.AblationCAM(model, [module], batch_size=size)(images(), TARGETS)
        np.testing.assert_allclose(maps, processed(weights, activations), rtol=0, atol=2e-5)


def test_ablation_cam_in_closed_form_runs_nothing():
    model, calls = small().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    compat.AblationCAM(model, [model.act2])(images(), TARGETS)
    assert len(calls) == 2


class Counting(compat.AblationLayer):
    """A user's own stand-in."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return super().__call__(x)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_ablation_cam_of_other_outputs(kind):
    """A dict runs on behind the layer like a tensor; a list with one mapping per image is asked for as a whole."""

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            logits = self.network(x)
            return {"logits": logits} if kind == "dict" else [{"logits": row} for row in logits]

    model = Other().eval()
    plain = model.network
    targets = TARGETS if kind == "dict" else [lambda out, k=t.category: out["logits"][k] for t in TARGETS]
    # What comes before the layer runs for a handful of images, or for every channel of each.
    rows = []
    handle = plain.conv.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    actual = compat.AblationCAM(model, [plain.conv2])(images(), targets)
    handle.remove()
    np.testing.assert_allclose(actual, compat.AblationCAM(plain, [plain.conv2])(images(), TARGETS), rtol=0, atol=1e-5)
    channels = plain.conv2.out_channels
    assert (sum(rows) < 3 * channels) is (kind == "dict")


def test_ablation_cam_with_a_stand_in_of_the_users_own():
    model = small().eval()
    layer = Counting()
    maps = compat.AblationCAM(model, [model.act], ablation_layer=layer, batch_size=4)(images(), TARGETS)
    np.testing.assert_allclose(maps, compat.AblationCAM(model, [model.act])(images(), TARGETS), rtol=0, atol=1e-5)
    assert layer.calls == 3 * 2


def test_ablation_cam_of_some_channels():
    model = small().eval()
    activations, weights = ablated(model, model.act, lambda _image: 0.0)
    cam = compat.AblationCAM(model, [model.act], ratio_channels_to_ablate=0.4)
    chosen = [cam.ablation_layer.activations_to_be_ablated(image, 0.4) for image in activations.numpy()]
    assert all(len(set(some.tolist())) == len(some) == 4 for some in chosen)
    kept = torch.zeros_like(weights)
    for image, some in enumerate(chosen):
        kept[image, some] = weights[image, some]
    np.testing.assert_allclose(cam(images(), TARGETS), processed(kept, activations), rtol=0, atol=2e-5)


def test_ablation_of_several_layers_together():
    model = small().eval()
    activations, weights = ablated(model, model.act, lambda _image: 0.0)
    # What `act` lacks counts, whatever stood in its place before: `norm`'s channel is overwritten by it.
    maps = Together(model, [model.act])(images(), TARGETS)
    np.testing.assert_allclose(maps, processed(weights, activations), rtol=0, atol=2e-5)
    assert Together(model, [model.norm, model.act])(images(), TARGETS).shape == (3, 12, 16)


def test_full_grad():
    model = small().eval()
    x = images().requires_grad_()
    tensors = {}

    def keep(name):
        def hook(_module, _inputs, output):
            output.retain_grad()
            tensors[name] = output
            return output.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in ("conv", "norm", "conv2")]
    logits = model(x)
    sum(row[target.category] for row, target in zip(logits, TARGETS, strict=True)).backward()
    for handle in handles:
        handle.remove()
    norm = model.norm
    biases = {
        "conv": model.conv.bias,
        "conv2": model.conv2.bias,
        "norm": norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt(),
    }
    total = np.zeros((3, 12, 16), np.float32)
    parts = [(x.grad * x).abs(), *((biases[n][:, None, None] * tensors[n].grad).abs() for n in biases)]
    for part in parts:
        for channel in part.detach().transpose(0, 1):
            total += scale_cam_image(channel.numpy(), (16, 12))
    maps = compat.FullGrad(model, [])(images(), TARGETS)
    np.testing.assert_allclose(maps, scale_cam_image(total), rtol=0, atol=1e-5)
    assert compat.FullGrad(model, [])(images(), TARGETS, eigen_smooth=True).shape == (3, 12, 16)


def test_full_grad_passes_over_what_takes_no_part():
    model = small().eval()
    whole = compat.FullGrad(model, [])(images(), TARGETS)
    model.idle = nn.Conv2d(3, 3, 1)
    np.testing.assert_array_equal(compat.FullGrad(model, [])(images(), TARGETS), whole)


def test_guided_backprop():
    model = small().train()
    before = [(id(module), module.training) for module in model.modules()]
    x = images(1)
    actual = compat.GuidedBackpropReLUModel(model)(x, 3)
    assert [(id(module), module.training) for module in model.modules()] == before
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    replaced = small().eval()
    compat.GuidedBackpropReLUModel(replaced).recursive_replace_relu_with_guidedrelu(replaced)
    leaf = x.clone().requires_grad_()
    replaced(leaf)[0, 3].backward()
    np.testing.assert_allclose(actual, leaf.grad[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-7)
    compat.GuidedBackpropReLUModel(replaced).recursive_replace_guidedrelu_with_relu(replaced)
    assert type(replaced.act) is nn.ReLU


def test_sess_with_one_window_is_the_method_itself_blurred_or_not():
    model = small().eval()
    square = images(2, (16, 16))
    targets = TARGETS[:2]
    plain = compat.GradCAM(model, [model.conv2])(square, targets)
    sess = compat.SESS(model, [model.conv2], num_scales=1, smooth=False)
    positive = plain > 0
    np.testing.assert_allclose(sess(square, targets)[positive], plain[positive], rtol=0, atol=1e-5)
    assert compat.SESS(model, [model.conv2], num_scales=3, pool="max")(square, targets).shape == (2, 16, 16)
