"""Real architectures with random weights: default layers, layouts, other inputs and outputs."""

from __future__ import annotations

import pytest
import torch
from architectures import convnext, dinov2, resnet, segformer, swin, vit
from torch import nn

import whycam
from whycam.cam.inspect import default_layer, inspect_layers
from whycam.cam.network.layout import Layout, detect_layout

EVERYWHERE = ["gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "fem", "random"]


# build, image size, the layer to expect, its layout, its grid
CASES = {
    "vit": (vit, (64, 64), r"layer.*1.*layernorm_before", Layout("tokens", (8, 8), 1), (8, 8)),
    "dinov2": (dinov2, (56, 56), r"layernorm$", Layout("tokens", (8, 8), 5), (8, 8)),
    "swin": (swin, (64, 64), r"layernorm$", Layout("tokens", (8, 8), 0), (8, 8)),
    "resnet": (resnet, (64, 64), r"encoder", Layout(), (4, 4)),
    "convnext": (convnext, (64, 64), r"encoder", Layout(), (2, 2)),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    build, size, layer, layout, grid = CASES[request.param]
    torch.manual_seed(0)
    return build().eval(), torch.randn(2, 3, *size), layer, layout, grid


def test_the_default_layer_has_the_expected_map(case):
    import re

    model, images, expected, layout, grid = case
    layer = default_layer(model, images)
    assert re.search(expected, layer.path), layer.path
    explained = whycam.explain(model, images, methods=EVERYWHERE)
    assert {raw.shape for raw in explained.maps.values()} == {(2, *grid)}
    assert all(bool(raw.isfinite().all()) for raw in explained.maps.values())
    assert bool((explained.map("gradcam") != 0).any())
    output = {}
    handle = layer.module.register_forward_hook(lambda _m, _i, out: output.update(out=out))
    with torch.no_grad():
        model(images)
    handle.remove()
    tensor = output["out"] if isinstance(output["out"], torch.Tensor) else output["out"][0]
    assert detect_layout(tensor, images.shape[2:], layer.module) == layout


def test_given_and_detected_layout_give_the_same_map(case):
    model, images, _, layout, _ = case
    detected, given = (whycam.explain(model, images, layout=choice) for choice in (None, layout))
    assert torch.equal(detected.map(), given.map())


def test_hirescam_and_gradcam_of_tokens_equal_their_definition():
    torch.manual_seed(0)
    model, images = vit().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    name = default_layer(model, images).name
    explained = whycam.explain(model, images, name, ["hirescam", "gradcam"], 3)
    module = model.get_submodule(name)
    captured = {}
    handle = module.register_forward_hook(lambda _m, _i, out: captured.update(out=out) or out.retain_grad())
    model(images).logits[:, 3].sum().backward()
    handle.remove()
    a, g = captured["out"].detach()[:, 1:], captured["out"].grad[:, 1:]
    torch.testing.assert_close(explained.map("hirescam").flatten(1), (a * g).sum(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        explained.map("gradcam").flatten(1), (a * g.mean(1, keepdim=True)).sum(2), rtol=0, atol=1e-12
    )


def test_rectangular_inputs():
    torch.manual_seed(0)
    model = vit().eval()
    images = torch.randn(1, 3, 64, 32)
    explained = whycam.explain(model, {"pixel_values": images, "interpolate_pos_encoding": True})
    assert explained.map().shape == (1, 8, 4)


def test_semantic_segmentation():
    torch.manual_seed(0)
    model, images = segformer().eval(), torch.randn(2, 3, 64, 64)
    mask = torch.zeros(2, 16, 16)
    mask[0, :8], mask[1, 8:] = 1, 1
    whole, top, bottom = (
        whycam.explain(model, images, targets=whycam.Segmentation(2, m)) for m in (None, mask, 1 - mask)
    )
    torch.testing.assert_close(top.map("gradcam") + bottom.map("gradcam"), whole.map("gradcam"), rtol=1e-3, atol=1e-5)
    with pytest.raises(whycam.WhycamError, match=r"a class target needs \(B, K\) logits"):
        whycam.explain(model, images, targets=1)


def test_channels_last_activations():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 12, 4, stride=4)
            self.norm = nn.LayerNorm(12)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.norm(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))

    torch.manual_seed(0)
    model, images = Swapped(), torch.randn(2, 3, 48, 32)
    explained = whycam.explain(model, images, "norm", ["gradcam", "hirescam"], 1)
    assert explained.map("gradcam").shape == (2, 12, 8)
    total = explained.map("hirescam").sum((1, 2)) + model.head.bias[1].detach()
    torch.testing.assert_close(total, explained.logits[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("convolution", "shape"), [(nn.Conv1d, (2, 3, 32)), (nn.Conv3d, (2, 3, 8, 12, 16))])
def test_series_and_volumes(convolution, shape):
    axes = len(shape) - 2

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = convolution(3, 6, 3, padding=1, stride=2)
            self.two = convolution(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.two(self.one(x).relu()).relu().flatten(2).mean(2))

    torch.manual_seed(0)
    model, images = Network(), torch.randn(shape)
    explained = whycam.explain(model, images, ["one", "two"], EVERYWHERE, 2)
    assert {raw.ndim for raw in explained.maps.values()} == {axes + 1}
    assert explained.heatmap("gradcam", "two").shape == (2, *shape[2:])
    assert whycam.explain(model, images).layers == ("two",)


def test_several_inputs_by_name_and_by_position():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x, extra):
            return self.head(torch.cat([self.conv(x).relu().mean((2, 3)), extra], 1))

    torch.manual_seed(0)
    model, images, extra = Pair(), torch.randn(3, 3, 16, 16), torch.randn(3, 2)
    named = whycam.explain(model, {"x": images, "extra": extra}, "conv", ["gradcam", "inputgradient"])
    placed = whycam.explain(model, (images, extra), "conv", ["gradcam", "inputgradient"])
    for key, raw in named.maps.items():
        assert torch.equal(raw, placed.maps[key])
    alone = whycam.explain(model, (images[1:2], extra[1:2]), "conv")
    torch.testing.assert_close(alone.map()[0], named.map("gradcam")[1])


@pytest.mark.parametrize(
    ("target", "output"),
    [
        (whycam.Output(), lambda head: head[:, 0]),
        (whycam.Binary(), lambda head: head[:, :1]),
        (whycam.Binary(positive=False), lambda head: -head[:, :1]),
        (whycam.Similarity(torch.tensor([1.0, 0.0, 0.0, 0.0])), lambda head: head),
        (lambda logits: logits.logsumexp(1), lambda head: head),
    ],
)
def test_targets_for_other_outputs_than_classes(target, output):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return output(self.head(self.conv(x).relu().mean((2, 3))))

    torch.manual_seed(0)
    model, images = Network(), torch.randn(2, 3, 8, 8)
    explained = whycam.explain(model, images, "conv", "hirescam", target)
    assert explained.map().shape == (2, 8, 8)
    assert bool((explained.map() != 0).any())
    with torch.no_grad():
        torch.testing.assert_close(explained.scores["target"], target(model(images)))


def test_gradient_checkpointing():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, active):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
            self.head = nn.Linear(6, 4)
            self.active = active

        def forward(self, x):
            x = self.stem(x).relu()
            x = checkpoint(self.block, x, use_reentrant=False) if self.active else self.block(x)
            return self.head(x.relu().mean((2, 3)))

    torch.manual_seed(0)
    plain = Checkpointed(False)
    model = Checkpointed(True)
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 8, 8)
    layers = ["stem", "block[0]", "block"]
    expected, actual = (whycam.explain(network, images, layers, "gradcam", 1) for network in (plain, model))
    for key, raw in expected.maps.items():
        torch.testing.assert_close(actual.maps[key], raw)


def test_differentiable_maps(batch, loaded):
    """∂(Σ map²)/∂weights by autograd equals finite differences."""
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.next = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.next(self.conv(x).tanh()).tanh().mean((2, 3)))

    model, images = Network().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def loss():
        explained = whycam.explain(model, images, "conv", ["gradcam", "hirescam", "layercam"], 1, differentiable=True)
        return sum(raw.square().sum() for raw in explained.maps.values())

    (gradient,) = torch.autograd.grad(loss(), model.next.weight)
    step = 1e-6
    for index in [(0, 0, 0, 0), (3, 2, 1, 1)]:
        with torch.no_grad():
            model.next.weight[index] += step
        above = float(loss().detach())
        with torch.no_grad():
            model.next.weight[index] -= 2 * step
        below = float(loss().detach())
        with torch.no_grad():
            model.next.weight[index] += step
        assert float(gradient[index]) == pytest.approx((above - below) / (2 * step), rel=1e-5)
    assert not whycam.explain(*loaded[:1], batch, "layer4[-1]").map().requires_grad


def test_measured_receptive_fields():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    torch.manual_seed(0)
    layers = inspect_layers(model, torch.randn(1, 3, 33, 33))
    assert [(info.path, info.grid, info.receptive_field) for info in layers] == [
        ("0", (33, 33), (3, 3)),
        ("1", (17, 17), (5, 5)),
        ("2", (17, 17), (9, 9)),
    ]
    assert all(info.affects_output for info in layers)


@pytest.mark.parametrize(
    ("shape", "size", "module", "expected"),
    [
        ((1, 64, 8, 8), (32, 32), None, Layout()),
        ((1, 7, 7, 768), (224, 224), None, Layout("channels-last")),
        ((1, 7, 7, 7), (224, 224), None, Layout()),
        ((1, 7, 7, 7), (224, 224), nn.LayerNorm(7), Layout("channels-last")),
        ((1, 197, 768), (224, 224), None, Layout("tokens", (14, 14), 1)),
        ((1, 201, 768), (224, 224), None, Layout("tokens", (14, 14), 5)),
        ((1, 198, 192), (224, 224), None, Layout("tokens", (14, 14), 2)),
        ((1, 98, 8), (224, 112), None, Layout("tokens", (14, 7), 0)),
        ((1, 13, 17, 32), (208, 272), None, Layout("channels-last")),
    ],
)
def test_layouts(shape, size, module, expected):
    layout = detect_layout(torch.empty(shape), size, module)
    assert layout == expected
    output = torch.randn(shape)
    assert torch.equal(layout.from_map(layout.to_map(output), output), output)


def test_tokens_that_fill_no_grid_are_refused():
    with pytest.raises(whycam.WhycamError, match=r"70 tokens fill no grid .* give the layout"):
        detect_layout(torch.empty(1, 70, 8), (37, 41))
