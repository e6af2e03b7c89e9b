"""The default layer and its layout, on networks where both are hard to find."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whycam
from whycam import WhycamError
from whycam.cam.inspect import default_layer, inspect_layers
from whycam.cam.network.layout import ArchitectureHints, Layout, detect_layout


class Block(nn.Module):
    """The residual block of most ImageNet networks: one ReLU module that runs twice, the sum and the ReLU in place."""

    def __init__(self, inward: int, channels: int, stride: int, *, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(inward, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Conv2d(inward, channels, 1, stride) if inward != channels else None

    def forward(self, x):
        shortcut = x if self.down is None else self.down(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            y += shortcut
        else:
            y = y + shortcut
        return self.relu(y)


class Residual(nn.Module):
    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.layer1 = nn.Sequential(Block(8, 8, 1, inplace=inplace), Block(8, 16, 2, inplace=inplace))
        self.layer2 = nn.Sequential(Block(16, 16, 1, inplace=inplace), Block(16, 16, 1, inplace=inplace))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(self.conv(x)))), 1))


@pytest.mark.parametrize("inplace", [True, False])
def test_block_that_adds_in_place_is_the_default_layer(inplace, generator):
    """The block's map sums to the logit minus its bias. The map of the last BatchNorm, before the sum, would not."""
    torch.manual_seed(0)
    model, images = Residual(inplace=inplace).eval(), torch.randn(4, 3, 32, 32, generator=generator)
    found = whycam.explain(model, images, None, "hirescam")
    assert found.layers == ("layer2.1",)
    total = found.map().sum((1, 2)) + model.fc.bias.detach()[found.predicted]
    torch.testing.assert_close(total, found.scores["predicted"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_relu_is_the_default_layer(inplace):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert default_layer(model.eval(), torch.randn(1, 3, 16, 16)).path == "1"


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.three, self.drop, self.out = nn.Linear(width, 3 * width), nn.Dropout(0.1), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.three(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = self.drop((q @ k.mT / k.shape[-1] ** 0.5).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """A vision transformer whose attention weights pass through a module, as in DINO's and MAE's code."""

    def __init__(self, patch: tuple[int, int], width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.attention(self.norm1(x))
        return self.head(F.relu(self.norm2(x))[:, 0])


def test_attention_weights_are_not_listed_as_a_layer():
    torch.manual_seed(0)
    model, images = Encoder((16, 16)).eval(), torch.randn(1, 3, 224, 224)
    assert "attention.drop" not in [info.path for info in inspect_layers(model, images)]
    found = whycam.explain(model, images)
    assert (found.layers, found.map().shape) == (("norm1",), (1, 14, 14))


@pytest.mark.parametrize(("patch", "size", "grid"), [((8, 4), (32, 32), (4, 8)), ((4, 8), (36, 40), (9, 5))])
def test_patches_that_are_not_square(patch, size, grid):
    torch.manual_seed(0)
    model, images = Encoder(patch).eval(), torch.randn(2, 3, *size)
    assert ArchitectureHints.of(model, size).grids == (grid,)
    found = whycam.explain(model, images)
    assert found.map().shape == (2, *grid)
    assert whycam.factorize(model, images, "norm1", concepts=2).maps.shape == (2, 2, *grid)


def test_layout_follows_from_the_type_of_the_module():
    """The type decides against the sizes, also for a module that contains LayerNorms over the last axis."""
    output = torch.empty(2, 16, 16, 32)
    for module in (nn.Conv2d(3, 16, 3, (2, 1), 1), nn.BatchNorm2d(16), nn.GroupNorm(4, 16), nn.MaxPool2d((2, 1))):
        assert detect_layout(output, (32, 32), module) == Layout()
    assert detect_layout(output, (32, 32)) == Layout("channels-last")
    square = torch.empty(2, 96, 96, 96)
    assert detect_layout(square, (384, 384), nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 96))) == Layout(
        "channels-last"
    )
    assert detect_layout(square, (384, 384), nn.Sequential(nn.LayerNorm(96), nn.Conv2d(96, 96, 3))) == Layout()


def test_layout_follows_from_the_widths_of_the_network():
    """A ReLU behind a convolution with strides (2, 1): its output 16×16×32 could also be 32 channels of 16×16."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, (2, 1), 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    found = whycam.explain(model, torch.randn(2, 3, 32, 32))
    assert (found.layers, found.map().shape) == (("1",), (2, 16, 32))


class Regression(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.conv, self.fc, self.form = nn.Conv2d(3, 8, 3), nn.Linear(8, 1), form

    def forward(self, x):
        return self.form(self.fc(self.conv(x).relu().mean((2, 3)))[:, 0])


@pytest.mark.parametrize("form", [lambda y: y, lambda y: {"value": y}, lambda y: (y, y.mean())])
def test_default_layer_of_regression_networks(form):
    model, images = Regression(form).eval(), torch.randn(3, 3, 12, 12)
    found = whycam.explain(model, images, None, "gradcam", whycam.Output())
    assert (found.layers, found.map().shape) == (("conv",), (3, 10, 10))
    assert [info.affects_output for info in inspect_layers(model, images)] == [True]


class Video(nn.Module):
    """Takes (B, frames, channels, H, W), like some video transformers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, video):
        return self.head(self.conv(video.transpose(1, 2)).relu().mean((2, 3, 4)))


class ChannelsFirst(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video):
        return self.model(video.transpose(1, 2))


def test_video_with_frames_before_channels():
    video = torch.randn(2, 8, 3, 12, 10)
    with pytest.raises(WhycamError, match=r"video \(2, 8, 3, 12, 10\) has its frames before its channels: wrap the"):
        whycam.explain(Video().eval(), video)
    explained = whycam.explain(ChannelsFirst(Video()).eval(), video.transpose(1, 2), methods=["gradcam", "scorecam"])
    assert explained.map("scorecam").shape == (2, 4, 6, 5)
    assert explained.heatmap("gradcam").shape == (2, 8, 12, 10)


def test_tokens_of_a_video_transformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        num_hidden_layers=2, hidden_size=24, num_attention_heads=2, intermediate_size=32, image_size=32, num_frames=8
    )
    model = ChannelsFirst(transformers.VideoMAEForVideoClassification(config)).eval()
    explained = whycam.explain(model, torch.randn(1, 3, 8, 32, 32), methods=["gradcam", "reciprocam"])
    assert explained.map("gradcam").shape == explained.map("reciprocam").shape == (1, 4, 2, 2)


def test_kpca_cam_of_a_constant_layer_is_zero():
    class Same(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), keepdim=True).expand(-1, -1, 7, 5) * torch.full((7, 5), 0.3)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), Same(), nn.Conv2d(24, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explained = whycam.explain(model.eval(), torch.randn(3, 3, 20, 28), "1", ["kpcacam", "eigencam"])
    assert set(explained.flags["kpcacam", "1", "predicted"]) == {("all-zero",)}
