"""The head is found and its input read, in any network; a compiled network has the same neighbors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whycam
from whycam.data import take
from whycam.study import Config, run_study
from whycam.study.features import features_of, find_head


class Scaled(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.inner(x) * self.scale


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x):
        return self.linear(self.linear(x.mean(dim=(2, 3))[:, :1].expand(-1, 10)))


class Tokens(nn.Module):
    """The first token's vector goes into the head; the layers before see every token."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(3, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.mix(x.flatten(2).transpose(1, 2))[:, 0])


POOLED = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_head_is_the_layer_that_gives_the_logits(model, batch):
    hooks = [(module, len(module._forward_hooks)) for module in model.modules()]
    head = find_head(model, batch[:1])
    assert (head.path, head.features) == ("linear", 512)
    assert [(module, len(module._forward_hooks)) for module in model.modules()] == hooks
    with features_of(model, head) as seen:
        logits = model.eval()(batch)
    assert torch.equal(head.module(seen[0]), logits)
    assert not head.module._forward_pre_hooks


@pytest.mark.parametrize(
    ("network", "path"),
    [
        (Tokens(), "head"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 10)), "3"),
        (POOLED, None),
        (Scaled(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 0.1), None),
        (Twice(), None),
    ],
)
def test_heads_of_other_networks(network, path, batch):
    head = find_head(network, batch[:1])
    assert (head and head.path) == path


def test_a_head_that_is_called_by_keyword_is_found():
    class Keyword(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(12, 3)

        def forward(self, x):
            return self.fc(input=x.flatten(1))

    model = Keyword()
    images = torch.rand(1, 3, 2, 2)
    head = find_head(model, images)
    assert (head.path, head.features) == ("fc", 12)
    with features_of(model, head) as seen:
        model(images)
    assert torch.equal(seen[0], images.flatten(1))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = POOLED
        self.top = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.top(self.features(x))


def wrapped_in_torch_compile(network):
    network.top = torch.compile(network.top, backend="eager")
    return "top._orig_mod.2"


def compiled_in_place(network):
    network.top.compile(backend="eager")
    return "top.2"


def compiled_by_its_forward(network):
    network.top.forward = torch.compile(network.top.forward, backend="eager")
    return "top.2"


def head_compiled_in_place(network):
    network.top[2].compile(backend="eager")
    return "top.2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
@pytest.mark.parametrize(
    "wrap", [wrapped_in_torch_compile, compiled_in_place, compiled_by_its_forward, head_compiled_in_place]
)
def test_the_head_inside_a_compiled_part_is_found_and_gives_its_features(wrap, batch):
    torch.manual_seed(0)
    network = Classifier().eval()
    with torch.inference_mode():
        expected = network.top[:2](network.features(batch))
        path = wrap(network)
        network(batch)  # what is compiled now knows of no hooks
        head = find_head(network, batch[:1])
        assert (head.path, head.features) == (path, 8)
        with features_of(network, head) as seen:
            network(batch)
        network(batch)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_study_of_a_network_with_a_compiled_part_has_neighbors(spec, batch, tmp_path):
    """The same as without: how a part is run says nothing of the images."""
    torch.manual_seed(0)
    network = Classifier().eval()
    source = take(whycam.open_source("bundled"), 40)
    config = Config(layers=("features[0]",), methods=("gradcam",), batch_size=8, baseline=0, score_images=0)
    plain = run_study(network, spec, source, tmp_path / "plain", config)
    path = wrapped_in_torch_compile(network)
    with torch.inference_mode():
        for images in (batch[:1], batch):
            network(images)
    study = run_study(network, spec, source, tmp_path / "compiled", config)
    assert study.why_no_neighbors is None
    assert study.manifest["features"] == {"layer": path, "length": 8}
    assert len(study.neighbors) > 0
    assert study.neighbors.equals(plain.neighbors)
