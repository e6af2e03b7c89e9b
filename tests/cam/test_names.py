"""Names of layers and methods, and shorthands of targets, as users write them; error messages for unknown ones."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import ClassScore, Margin, Predicted, Probability, resolve_layer, resolve_methods
from whycam.cam.targets.resolve import resolve_target, scores_of


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("layer3[-2]", "layer3.0"),
        ("layer3.0", "layer3.0"),
        ("layer3[1].conv1", "layer3.1.conv1"),
        ("layer2[0].shortcut[-1]", "layer2.0.shortcut.1"),
        ("bn1", "bn1"),
    ],
)
def test_layer_paths(model, written, path):
    layer = resolve_layer(model, written)
    assert (layer.name, layer.path) == (written, path)
    assert layer.module is model.get_submodule(path)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("layer5", r"unknown layer 'layer5' \(did you mean layer"),
        ("layer3[7]", r"unknown layer 'layer3\[7\]' \(did you mean layer3"),
        ("layer3.0.conv9", r"did you mean layer3.0.conv"),
        ("layer3[", r"not a layer path; write it like layer3\[-2\]"),
        (".layer3", "not a layer path"),
        ("", "not a layer path"),
    ],
)
def test_unknown_layers(model, written, message):
    with pytest.raises(WhycamError, match=message) as caught:
        resolve_layer(model, written)
    names = re.findall(r"layer\d[\w.]*", str(caught.value).partition("did you mean")[2])
    assert len(names) == len(set(names))


def test_foreign_and_repeated_layers_are_refused(model, batch):
    with pytest.raises(WhycamError, match="the given Conv2d module is not part of this model"):
        resolve_layer(model, nn.Conv2d(3, 3, 1))
    with pytest.raises(WhycamError, match="layer 'bn1' is given twice"):
        whycam.explain(model, batch, ["bn1", "bn1"])
    with pytest.raises(WhycamError, match="no layer is given"):
        whycam.explain(model, batch, [])


class RepeatedBlocks(nn.Module):
    """A list that contains one block twice, and None."""

    def __init__(self):
        super().__init__()
        shared = nn.Conv2d(3, 3, 3, padding=1)
        self.blocks = nn.ModuleList([shared, shared, nn.Conv2d(3, 4, 3, 2, 1)])
        self.blocks.add_module("3", None)
        self.blocks.append(nn.Conv2d(4, 5, 1))

    def forward(self, x):
        for block in filter(None, self.blocks):
            x = block(x).tanh()
        return x.mean((2, 3))


def test_indices_of_a_module_list_count_as_in_python():
    torch.manual_seed(0)
    model, images = RepeatedBlocks().eval(), torch.randn(2, 3, 6, 6)
    for index in (0, 1, 2, 4, -1, -3, -4, -5):
        expected = model.blocks[index]
        written = [f"blocks[{index}]"] + ([f"blocks.{index}"] if index >= 0 else [])
        for name in written:
            layer = resolve_layer(model, name)
            assert layer.module is expected is model.get_submodule(layer.path)
            raw = whycam.explain(model, images, name).map()
            assert torch.equal(raw, whycam.explain(model, images, expected).map())
    for missing in ("blocks[3]", "blocks[-2]", "blocks.3", "blocks[5]"):
        with pytest.raises(WhycamError, match="unknown layer"):
            resolve_layer(model, missing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_layer_names_with_and_without_the_wrapper(model, batch):
    by_itself = whycam.explain(model, batch, "layer3.0").map()
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        torch.compile(nn.DataParallel(model), backend="eager"),
    ):
        wrappers = next(name for name, module in wrapped.named_modules() if module is model)
        names = ["layer3.0", f"{wrappers}.layer3.0", f"{wrappers}.layer3[-2]"]
        explained = whycam.explain(wrapped, batch, names)
        assert explained.layers == tuple(names)
        assert all(torch.equal(explained.map(layer=name), by_itself) for name in names)
        assert {resolve_layer(wrapped, name).path for name in names} == {"layer3.0"}
        assert resolve_layer(wrapped, model.layer3[0]).name == "layer3.0"
        for itself in (wrappers, wrappers.split(".")[0]):
            assert resolve_layer(wrapped, itself).module is model
        with pytest.raises(WhycamError, match=r"unknown layer .*did you mean .*layer4"):
            resolve_layer(wrapped, f"{wrappers}.layer5")


@pytest.mark.parametrize("written", ["gradcam", "Grad-CAM", "GRAD_CAM", "GradCAM"])
def test_method_names_ignore_case_and_separators(written):
    assert [method.name for method in resolve_methods(written)] == ["gradcam"]


def test_unknown_and_repeated_methods_are_refused():
    with pytest.raises(WhycamError, match=r"unknown method 'gradcamm' \(did you mean gradcam"):
        resolve_methods(["gradcamm"])
    with pytest.raises(WhycamError, match="method Grad-CAM is given twice"):
        resolve_methods(["gradcam", "Grad-CAM"])
    with pytest.raises(WhycamError, match="no method is given"):
        resolve_methods([])


LOGITS = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 4.0]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [5.0, 4.0]),
        (2, [2.0, 4.0]),
        ([0, 1], [1.0, 0.0]),
        (torch.tensor([1, 2]), [5.0, 4.0]),
        (torch.tensor(1), [5.0, 0.0]),
        (Predicted(), [5.0, 4.0]),
        (ClassScore(torch.tensor([2, 2])), [2.0, 4.0]),
        (Margin(1, 0), [4.0, -4.0]),
        ([Margin(1, 0), ClassScore(2)], [4.0, 4.0]),
        (lambda logits: logits.sum(1), [8.0, 8.0]),
    ],
)
def test_scores_of_target_shorthands(target, expected):
    assert scores_of(resolve_target(target), LOGITS).tolist() == expected


def test_probability_target():
    expected = torch.softmax(LOGITS.double(), 1)[:, 1]
    torch.testing.assert_close(scores_of(Probability(1), LOGITS.double()), expected)


def test_predicted_has_the_gradient_of_one_logit_in_a_tie():
    logits = LOGITS.clone().requires_grad_()
    scores_of(Predicted(), logits).sum().backward()
    assert logits.grad.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "target class 3 does not exist; this model has classes 0 to 2"),
        (-1, "target class -1 does not exist"),
        ([0, 1, 2], "3 target classes are given for 2 images"),
        ([Predicted()], "1 targets are given for 2 images"),
        (torch.tensor([0.5, 1.0]), "whole numbers; got torch.float32"),
        (True, "got a bool"),
        ({1: 2}, "got dict"),
        ("cat", "target 'cat' is a class name, but the model does not say what its classes are called"),
        (lambda logits: logits, r"must return one score per image, shape \(2,\); it returned \(2, 3\)"),
    ],
)
def test_bad_targets_are_refused(target, message):
    with pytest.raises(WhycamError, match=message):
        scores_of(resolve_target(target), LOGITS)


def test_targets_without_gradient_and_empty_targets_are_refused(model, batch):
    with pytest.raises(WhycamError, match="does not depend on 'bn1' in a differentiable way"):
        whycam.explain(model, batch, "bn1", targets=lambda logits: torch.zeros(len(logits)))
    with pytest.raises(WhycamError, match="targets is an empty mapping"):
        whycam.explain(model, batch, "bn1", targets={})
