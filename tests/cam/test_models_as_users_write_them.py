"""Models as users write them: layers that return containers, in-place operations, parts that run without gradients."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from networks import InPlace
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam.inspect import default_layer
from whycam.cam.methods.activation import principal_map, principal_projection
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import resolve_layer
from whycam.cam.passes.tail import _MOST_SPLITS, _SPLITS, Tail
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import project_positive
from whycam.device import has_double, in_double
from whycam.nn_utils import first_tensor, rows_of, with_first_tensor

METHODS = ["gradcam", "hirescam", "ablationcam", "reciprocam", "scorecam", "fullgrad", "inputgradient",
           "noisy(gradcam, n=2)", "augmented(ablationcam)"]  # fmt: skip


@dataclass(frozen=True)
class Frozen:
    name: str
    features: torch.Tensor
    more: tuple


Pair = namedtuple("Pair", ["features", "more"])


class ContainerNetwork(nn.Module):
    """A layer returns its features in a container, and the next one takes them out of it."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = ContainerLayer(wrap)
        self.unwrap = unwrap
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        features = self.unwrap(self.layer(self.stem(x).relu()))
        return self.head(features.relu_().mean((2, 3)))


class ContainerLayer(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.conv(x), x)


CONTAINERS = {
    "plain": (lambda y, x: y, lambda out: out),
    "tuple": (lambda y, x: (y, x), lambda out: out[0]),
    "list": (lambda y, x: [y, x], lambda out: out[0]),
    "namedtuple": (Pair, lambda out: out.features),
    "dict": (lambda y, x: {"name": "a name", "features": y, "more": x}, lambda out: out["features"]),
    "ordered": (lambda y, x: OrderedDict(features=y, more=x), lambda out: out["features"]),
    "frozen dataclass": (lambda y, x: Frozen("a name", y, (x,)), lambda out: out.features),
    "nested": (
        lambda y, x: {"none": None, "levels": [Frozen("a name", y, (x,)), x]},
        lambda o: o["levels"][0].features,
    ),
}


def container_network(kind):
    torch.manual_seed(0)
    return ContainerNetwork(*CONTAINERS[kind]).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("kind", sorted(set(CONTAINERS) - {"plain"}))
def test_layers_that_return_a_container(kind):
    model, images = container_network(kind)
    plain, _ = container_network("plain")
    expected = whycam.explain(plain, images, "layer", METHODS, [4, 0])
    explained = whycam.explain(model, images, "layer", METHODS, [4, 0])
    for key, raw in expected.maps.items():
        torch.testing.assert_close(explained.maps[key], raw, rtol=0, atol=1e-12, msg=str(key))
    assert default_layer(model, images).path.startswith("layer")


def test_model_output_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    model, images = transformers.ResNetForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    # The encoder returns a ModelOutput, its last stage the same tensor by itself.
    one, other = (
        whycam.explain(model, images, layer, ["gradcam", "ablationcam"])
        for layer in ("resnet.encoder", "resnet.encoder.stages[-1]")
    )
    for (method, _, _), raw in one.maps.items():
        torch.testing.assert_close(raw, other.map(method))


def test_containers_are_copied_and_keep_their_type():
    first, second, other = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 3)
    for wrap, unwrap in CONTAINERS.values():
        container = wrap(first, second)
        changed = with_first_tensor(container, other)
        assert type(changed) is type(container)
        assert unwrap(changed) is other
        assert unwrap(container) is first
        assert first_tensor(container) is first
        part = rows_of(container, 2, torch.tensor([1]))
        assert type(part) is type(container)
        assert torch.equal(unwrap(part), first[1:])
    detections = [{"boxes": first}, {"boxes": second}]
    assert rows_of(detections, 2, torch.tensor([1, 0, 1])) == [detections[1], detections[0], detections[1]]
    assert rows_of("text", 2, torch.tensor([0])) == "text"
    with pytest.raises(WhycamError, match="a tuple holds no tensor"):
        with_first_tensor((1, "two"), other)
    with pytest.raises(WhycamError, match="a mappingproxy cannot be altered; choose the layer inside it"):
        with_first_tensor(MappingProxyType({"features": first}), other)
    assert isinstance(MappingProxyType({}), Mapping)


class SubtractsInPlace(InPlace):
    """Normalizes the images in place."""

    def forward(self, x):
        x.sub_(0.5)
        return super().forward(x)


def test_network_that_changes_its_input_in_place():
    torch.manual_seed(0)
    plain = InPlace().double().eval()
    model = SubtractsInPlace().double().eval()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    kept = images.clone()
    methods = ["gradcam", "ablationcam", "fullgrad", "inputgradient", "guidedgradcam", "noisy(gradcam, n=2)"]
    explained = whycam.explain(model, images, "conv2", methods, 1)
    assert torch.equal(images, kept)
    expected = whycam.explain(plain, images - 0.5, "conv2", methods, 1)
    for key, raw in expected.maps.items():
        if key[0] != "fullgrad":  # FullGrad has a term input times gradient, and the inputs differ
            torch.testing.assert_close(explained.maps[key], raw, rtol=0, atol=1e-12, msg=str(key))
    for method in ("scorecam(weights='increase')", "groupcam(groups=2)"):  # these use the same images in two passes
        whycam.explain(model, images, "conv2", method, 1)
    assert default_layer(model, images).path == default_layer(plain, images).path
    whycam.explain(model, images, targets=1, differentiable=True).map().sum().backward()
    assert torch.equal(images, kept)


class Backbone(nn.Module):
    """A backbone that runs without gradients, so that it is not trained."""

    def __init__(self, guard, neck=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.backbone = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.neck = nn.Conv2d(6, 6, 3, padding=1) if neck else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)
        self.guard = guard

    def forward(self, x):
        x = self.stem(x)
        with self.guard():
            x = self.backbone(x)
        return self.head(self.neck(x.clone()).relu().mean((2, 3)))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_backbone_under_no_grad_is_named_in_the_error(guard):
    torch.manual_seed(0)
    model, images = Backbone(guard).eval(), torch.randn(2, 3, 8, 8)
    for layer in ("backbone", "backbone[0]", "stem"):
        with pytest.raises(
            WhycamError,
            match=r"'backbone' runs under torch.no_grad\(\) .*; choose a layer after it, for example 'neck'",
        ):
            whycam.explain(model, images, layer, "gradcam")
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        assert bool((whycam.explain(model, images, "neck", "gradcam").map() != 0).any())
        for method in ("eigencam", "ablationcam", "scorecam"):  # the error recommends methods without gradients
            assert bool((whycam.explain(model, images, "backbone", method).map() != 0).any())
    model = Backbone(guard, neck=False).eval()
    with pytest.raises(
        WhycamError, match=r"no layer after it has a map, so remove the no_grad, or use a method without"
    ):
        whycam.explain(model, images, "backbone", "gradcam")
    # If the model does not switch gradients off, the error does not mention no_grad.
    with pytest.raises(WhycamError, match=r"in a differentiable way$"):
        whycam.explain(InPlace().eval(), images, "conv", "gradcam", lambda logits: torch.zeros(len(logits)))


def test_cache_of_split_graphs_is_bounded():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x, factor):
            return self.head((self.conv(x) * factor).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Scaled().eval(), torch.randn(2, 3, 6, 6)
    layer = resolve_layer(model, "conv")
    with torch.no_grad():
        for step in range(_MOST_SPLITS + 5):
            tail = Tail(model, layer, Inputs.of((images, float(step))))
            assert tail.fallback_reason is None
            output = model.conv(images)
            torch.testing.assert_close(tail(output, torch.arange(2)), model(images, float(step)))
    assert len(_SPLITS[model]) == _MOST_SPLITS


def test_devices_without_float64_compute_on_the_cpu(monkeypatch):
    assert not has_double(torch.device("mps"))
    assert has_double(torch.device("cpu"))
    assert has_double(torch.device("cuda"))
    features = torch.randn(3, 5, 4, 4)
    expected = principal_projection(features), principal_map(features), project_positive(features)
    whole = whycam.explain(InPlace().eval(), torch.randn(2, 3, 9, 9), "norm", ["kpcacam", "eigencam"])
    assert {raw.dtype for raw in whole.maps.values()} == {torch.float32}
    monkeypatch.setattr("whycam.device.has_double", lambda _device: False)
    assert in_double(features).dtype == torch.float64
    for one, other in zip(
        expected, (principal_projection(features), principal_map(features), project_positive(features)), strict=True
    ):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32
