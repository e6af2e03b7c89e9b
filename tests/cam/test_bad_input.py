"""Bad input: each mistake in the arguments is one clear sentence, never another exception and never a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import InPlace, Transformer
from torch import nn

import whycam
from whycam import Layout, WhycamError
from whycam.cam.inspect import inspect_layers
from whycam.cam.methods.registry import Method
from whycam.compat.pytorch_grad_cam import GradCAM


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InPlace().eval(), torch.randn(2, 3, 9, 9)


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    return Transformer(depth=1).eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 5}, "layers are names or modules, or a list of them; got 5"),
        ({"layers": [5]}, r"a layer is a name like layer3\[-2\] or a module of the model; got 5"),
        ({"layers": ["conv", None]}, "a module of the model; got None"),
        ({"layers": []}, "no layer is given"),
        (
            {"methods": None},
            "methods are names such as 'gradcam' or whycam.cam.Method objects, or a list of them; got None",
        ),
        ({"methods": 5}, "methods are names such as .* got 5"),
        ({"methods": ["gradcam", None]}, r"methods are names such as .* got \['gradcam', None\]"),
        ({"targets": whycam.Predicted}, "a target is made of Predicted, not Predicted itself"),
        ({"targets": {"a": whycam.Margin}}, "a target is made of Margin, not Margin itself"),
        ({"targets": [0, whycam.Predicted]}, "a target is made of Predicted, not Predicted itself"),
        ({"targets": whycam.Similarity(torch.ones(4))}, r"an embedding is .* it is \(4,\), the output \(2, 5\)"),
        ({"targets": whycam.Similarity(torch.ones(3, 5))}, r"an embedding is .* it is \(3, 5\), the output \(2, 5\)"),
        ({"layout": "tokens"}, r"layout is a whycam.Layout, .* or a mapping of layers' names to such; got 'tokens'"),
        ({"layout": {"conv": "tokens"}}, "layout is a whycam.Layout, .*; got 'tokens'"),
        ({"layout": {"conv3": Layout()}}, "a layout is given for 'conv3', which is none of the layers: conv"),
        (
            {"layout": Layout("tokens", (3, 3))},
            r"a layer with the output \(2, 6, 9, 9\) does not have the layout .* 3×3",
        ),
    ],
)
def test_bad_arguments_of_explain(network, arguments, message):
    with pytest.raises(WhycamError, match=message):
        whycam.explain(*network, **({"layers": "conv"} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("foo",), "a layout is 'channels-first', 'channels-last', 'tokens', not 'foo'"),
        (("tokens",), r"a layout of tokens needs its grid: whycam.Layout\('tokens', grid=\(rows, columns\)"),
        (("channels-last", (3, 3)), "a grid is for tokens: a channels-last output has its positions as axes"),
        (("tokens", 9), "a layout's grid holds whole numbers of tokens, .*; got grid=9, prefix=0"),
        (("tokens", (3.0, 3)), r"whole numbers of tokens, .*; got grid=\(3.0, 3\)"),
        (("tokens", (3, 3), None), r"whole numbers of tokens, .* prefix=None"),
        (("tokens", (3, 0)), r"a grid of \(3, 0\) tokens after 0 others does not exist"),
        (("tokens", (3, 3), -1), r"a grid of \(3, 3\) tokens after -1 others does not exist"),
    ],
)
def test_bad_arguments_of_layout(arguments, message):
    with pytest.raises(WhycamError, match=message):
        Layout(*arguments)
    assert Layout("tokens", [3, 3]) == Layout("tokens", (3, 3))


@pytest.mark.parametrize("grid", [(3, 3), (2, 3), (2, 2)])
def test_layout_with_too_many_tokens(tokens, grid):
    """The layer has four tokens on the grid and one before it. Only that layout fits, for every method."""
    model, images = tokens
    for method in ("gradcam", "ablationcam"):
        for prefix in (1, 2):
            layout = Layout("tokens", grid, prefix)
            if (grid, prefix) == ((2, 2), 1):
                raw = whycam.explain(model, images, "blocks[0].norm2", method, 1, layout=layout).map()
                assert raw.shape[1:] == grid
                continue
            with pytest.raises(WhycamError, match=f"{grid[0]}×{grid[1]} tokens after {prefix} others"):
                whycam.explain(model, images, "blocks[0].norm2", method, 1, layout=layout)


def test_bad_arguments_of_factorize(network):
    with pytest.raises(WhycamError, match=r"layout is a whycam.Layout, .*; got 'tokens'"):
        whycam.factorize(*network, "conv", layout="tokens")
    for concepts in (2.5, "3"):
        with pytest.raises(WhycamError, match="option concepts of factorize is a whole number"):
            whycam.factorize(*network, "conv", concepts=concepts)
    assert whycam.factorize(*network, "conv", concepts=np.int64(2)).maps.shape[1] == 2


def test_embedding_for_all_images_or_one_per_image(network):
    model, images = network
    shared = torch.arange(5.0)
    expected = whycam.explain(model, images, "conv", targets=whycam.Similarity(shared)).map()
    for embedding in (shared[None], shared.expand(2, 5)):
        torch.testing.assert_close(
            whycam.explain(model, images, "conv", targets=whycam.Similarity(embedding)).map(), expected
        )


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_network_without_a_first_batch():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    images = torch.randn(2, 3, 6, 6)
    calls = [
        lambda: whycam.explain(model, images),
        lambda: whycam.explain(model, images, "0", ["scorecam", "gradcam"]),
        lambda: inspect_layers(model, images),
        lambda: whycam.summarize(model, (3, 6, 6)),
        lambda: whycam.factorize(model, images, "0", 2),
        lambda: GradCAM(model, [model[0]])(images),
    ]
    for call in calls:
        with pytest.raises(
            WhycamError, match=r"LazyConv2d has no weights before it has seen a batch: call model\(images\)"
        ):
            call()
    with torch.no_grad():
        model(images)
    assert whycam.explain(model.eval(), images, "0").map().shape == (2, 4, 4)


def test_bad_target_layers_of_compat_classes(network):
    model, images = network
    for layers in (["conv"], [model.conv, None], "conv"):
        with pytest.raises(WhycamError, match=r"target_layers is a list of modules, got .* in it: write"):
            GradCAM(model, layers)(images)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "subclass", "none"])
def test_series_are_accepted_by_any_kind_of_convolution(kind):
    class Own(nn.Conv1d):
        pass

    torch.manual_seed(0)
    first = {"subclass": Own, "none": lambda *_: nn.Identity()}.get(kind, nn.Conv1d)(3, 3, 3)
    if kind.endswith("norm"):
        first = getattr(nn.utils.parametrizations, kind)(first)
    model = nn.Sequential(first, nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    signals = torch.randn(4, 3, 64)
    assert whycam.explain(model, signals, "1").map().shape[0] == 4


def test_only_a_channel_mismatch_is_reported_as_one(network):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.later = nn.Conv2d(8, 8, 3)
            self.first = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            if x.shape[-1] < 8:
                raise RuntimeError("my own size check: image too small")
            return self.later(self.first(x)).mean((2, 3))

    with pytest.raises(RuntimeError, match="my own size check"):
        whycam.explain(Picky(), torch.randn(2, 3, 6, 6), "first")
    for layer in ("first", None):
        with pytest.raises(WhycamError, match=r"images have 1 channel\(s\), the model's first convolution takes 3"):
            whycam.explain(Picky(), torch.randn(2, 1, 9, 9), layer)


@pytest.mark.parametrize(
    ("function", "got"), [(lambda _: None, "NoneType"), (lambda t: t.activations, r"a \(2, 6, 9, 9\) tensor")]
)
def test_method_that_returns_no_map(network, function, got):
    own = Method("own", "Own", "", "", function)
    with pytest.raises(WhycamError, match=rf"method 'own' returns {got}; .* for example the shape \(2, 9, 9\)"):
        whycam.explain(*network, "conv", own)
