"""Regression tests: networks and calls that once gave a wrong map or an unclear error."""

from __future__ import annotations

import pytest
import torch
from networks import InPlace
from torch import nn

import whycam
from whycam.cam import resolve_layers
from whycam.cam.maps import to_unit
from whycam.cam.network.head import pooled_linear_head
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layout import Layout, detect_layout
from whycam.cam.passes.tail import Tail
from whycam.errors import WhycamError


class RunsTwice(nn.Module):
    """A block that runs twice; both of its outputs are used."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        one = self.block(self.stem(x).relu())
        two = self.block(one)
        return self.head((one + two).relu().mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_layer_that_runs_twice_is_replaced_at_its_last_run(images):
    torch.manual_seed(0)
    model = RunsTwice().double().eval()
    (layer,) = resolve_layers(model, ["block"])
    outputs = []
    handle = layer.module.register_forward_hook(lambda _m, _i, out: outputs.append(out.detach()))
    with torch.no_grad():
        logits = model(images)
        handle.remove()
        tail = Tail(model, layer, Inputs.of(images))
        assert tail.fallback_reason == "the layer runs 2 times"
        torch.testing.assert_close(tail(outputs[-1], torch.arange(3)), logits, rtol=0, atol=1e-12)
    # By brute force: channel c of the last run set to 0.
    explained = whycam.explain(model, images, "block", "ablationcam", 1)
    for image in range(3):
        weights = []
        for channel in range(6):
            with torch.no_grad():
                last = outputs[-1][image : image + 1].clone()
                last[:, channel] = 0
                score = model.head((outputs[0][image : image + 1] + last).relu().mean((2, 3)))[0, 1]
            weights.append((logits[image, 1] - score) / logits[image, 1].abs())
        expected = sum(w * outputs[-1][image, c] for c, w in enumerate(weights))
        torch.testing.assert_close(explained.map()[image], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (1 + 17 * 17, (240, 240), Layout("tokens", (17, 17), 1)),  # patches of 14 pixels, the border cut off
        (1 + 16 * 16, (225, 225), Layout("tokens", (16, 16), 1)),
        (5 + 16 * 16, (224, 224), Layout("tokens", (16, 16), 5)),
        (4 * 6 * 6, (8, 12, 12), Layout("tokens", (4, 6, 6), 0)),
    ],
)
def test_layout_of_patches_that_do_not_divide_the_image(tokens, size, expected):
    assert detect_layout(torch.empty(1, tokens, 8), size) == expected


def test_too_many_tokens_before_the_grid_are_refused():
    with pytest.raises(WhycamError, match="110 tokens fill no grid"):
        detect_layout(torch.empty(1, 110, 8), (64, 64))


def test_layouts_of_series():
    assert detect_layout(torch.empty(2, 16, 12), (64,), nn.LayerNorm(12)) == Layout("channels-last")
    assert detect_layout(torch.empty(2, 12, 16), (64,), nn.Conv1d(3, 12, 3)) == Layout()


def test_layer_without_batch_axis_is_refused():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, stride=4)
            self.block = nn.LayerNorm(8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.block(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0))

    with pytest.raises(WhycamError, match=r"'block' returns a .* tensor for 2 images: its first axis is not"):
        whycam.explain(SequenceFirst(), torch.randn(2, 3, 16, 16), "block")


def test_pooled_linear_head_is_not_recognized_by_mistake(images):
    linear = nn.Linear(6, 5).double()
    with torch.no_grad():
        linear.weight.mul_(1e-3)
        linear.bias.add_(20)
    model = nn.Sequential(nn.Conv2d(3, 6, 3).double(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    before, after = model[0](images), model[1](model[0](images))
    logits = model(images).detach()
    assert pooled_linear_head(model, before.detach(), logits) is None
    assert pooled_linear_head(model, after.detach(), logits) is linear
    # A bright image must not hide the error of another image in the batch.
    bright = torch.cat([images[:1] * 1e5, images[1:]])
    assert pooled_linear_head(model, model[0](bright).detach(), model(bright).detach()) is None


@pytest.mark.parametrize("method", ["shapleycam", "finercam", "reciprocam", "gradcam"])
def test_list_and_tensor_of_classes_are_equal(method, images):
    torch.manual_seed(0)
    model = InPlace().double().eval()
    classes = torch.tensor([4, 0, 2])
    expected = whycam.explain(model, images, "conv2", method, classes).map()
    for targets in (list(classes), classes.tolist(), [whycam.ClassScore(int(c)) for c in classes]):
        torch.testing.assert_close(whycam.explain(model, images, "conv2", method, targets).map(), expected)
    with_predicted = whycam.explain(model, images, "conv2", method, [None, 0, 2])
    torch.testing.assert_close(with_predicted.map()[1:], expected[1:])


def test_shapley_cam_map_is_differentiable():
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.next = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.next(self.conv(x).tanh()).tanh().mean((2, 3)))

    torch.manual_seed(0)
    model, x = Smooth().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def loss():
        return whycam.explain(model, x, "conv", "shapleycam", 1, differentiable=True).map().square().sum()

    (gradient,) = torch.autograd.grad(loss(), model.next.weight)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            model.next.weight[1, 2, 1, 1] += step
            values.append(loss().detach())
            model.next.weight[1, 2, 1, 1] -= step
    assert float(gradient[1, 2, 1, 1]) == pytest.approx(float((values[0] - values[1]) / 2e-5), rel=1e-6)


def test_train_of_submodules_is_not_called():
    class Adapter(nn.Conv2d):
        """Merges its weights when it switches to eval mode, as low-rank adapters do."""

        def train(self, mode=True):
            if not mode:
                self.weight.data += 1
            return super().train(mode)

    model = nn.Sequential(Adapter(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    before = model[0].weight.detach().clone()
    whycam.explain(model, torch.randn(1, 3, 8, 8), "[1]", ["gradcam", "ablationcam", "inputgradient"])
    assert model[0].training
    assert torch.equal(model[0].weight, before)


def test_nan_is_flagged_for_layer_methods():
    torch.manual_seed(0)

    class Broken(InPlace):
        def forward(self, x):
            return super().forward(x) + 0 * x.new_tensor(0.0)

    model = Broken().eval()
    with torch.no_grad():
        model.norm.running_var[0] = float("nan")
    names = ["gradcam", "refinecam", "ablationcam", "reciprocam", "eigencam", "xgradcam"]
    explained = whycam.explain(model, torch.randn(1, 3, 8, 8), "conv2", names, 1)
    for key, flags in explained.flags.items():
        assert "non-finite" in flags[0], key
    raw = torch.tensor([[[1.0, float("nan")], [0.0, 2.0]]])
    assert not bool(to_unit(raw).isfinite().all())


def test_layer_inside_a_checkpointed_block():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, active):
            super().__init__()
            self.active = active
            self.block = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            x = checkpoint(self.block, x, use_reentrant=False) if self.active else self.block(x)
            return self.head(x.relu().mean((2, 3)))

    torch.manual_seed(0)
    plain, model = Checkpointed(False), Checkpointed(True)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for layer in ("block[0]", "block[2]"):
        expected, actual = (whycam.explain(network, x, layer, "gradcam", 1).map() for network in (plain, model))
        torch.testing.assert_close(actual, expected)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_hvp_through_attention():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 4, stride=4)
            self.norm = nn.LayerNorm(16)
            self.attend = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.attend(self.norm(self.embed(x).flatten(2).transpose(1, 2))).mean(1))

    torch.manual_seed(0)
    explained = whycam.explain(Tokens(), torch.randn(2, 3, 16, 16), "norm", ["shapleycam", "gradcam"], 1)
    assert explained.map("shapleycam").shape == (2, 4, 4)
    assert not torch.allclose(explained.map("shapleycam"), explained.map("gradcam"))


def test_regression_network_predicts_no_class():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x).relu().mean((1, 2, 3))

    x = torch.randn(2, 3, 8, 8)
    explained = whycam.explain(Regression(), x, "conv", "gradcam", whycam.Output())
    assert "no class predicted" in explained._repr_html_()
    explained.plot()
    with pytest.raises(WhycamError, match="no class is predicted"):
        _ = explained.predicted
    with pytest.raises(WhycamError, match="which predicts no class: give a target"):
        whycam.explain(Regression(), x, "conv")


@pytest.mark.parametrize("shape", [(2, 3, 20), (2, 3, 6, 8, 10)])
def test_controls_on_series_and_volumes(shape):
    axes = len(shape) - 2
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[axes]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = convolution(3, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x).relu().flatten(2).mean(2))

    explained = whycam.explain(Network(), torch.randn(shape), "conv", ["sobel", "center", "ablationcam", "reciprocam"])
    assert explained.map("sobel").shape == (2, *shape[2:])
    assert bool((explained.map("sobel") > 0).any())


def test_pixel_methods_on_a_network_without_spatial_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    explained = whycam.explain(model, torch.randn(2, 3, 4, 4), methods=["inputgradient", "smoothgrad"], targets=1)
    expected = model[1].weight[1].detach().reshape(3, 4, 4).sum(0)
    torch.testing.assert_close(explained.map("inputgradient"), expected.expand(2, 4, 4))


@pytest.mark.parametrize("written", ["noisy(gradcam, n=2)", "FEM( k = 3 )", 'scorecam(weights="increase")'])
def test_map_is_found_under_the_name_as_written(written, images):
    torch.manual_seed(0)
    explained = whycam.explain(InPlace().double().eval(), images, "conv2", [written, "gradcam"], 1)
    assert explained.map(written).shape == explained.map("gradcam").shape
