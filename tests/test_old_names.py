"""Public names of version 0.1 that moved: each still works and warns with the new name."""

from __future__ import annotations

import importlib

import pytest
import torch

import whycam

MOVED = {
    "whycam:Factorisation": "whycam:Factorization",
    "whycam:factorise": "whycam:factorize",
    "whycam:summarise": "whycam:summarize",
    "whycam.cam:Factorisation": "whycam.cam:Factorization",
    "whycam.cam:factorise": "whycam.cam:factorize",
    "whycam.cam:survey": "whycam.cam:inspect_layers",
    "whycam.cam.methods.options:Count": "whycam.options:Count",
    "whycam.cam.methods.options:Deviation": "whycam.options:Deviation",
    "whycam.cam.methods.options:Range": "whycam.options:Range",
    "whycam.cam.methods.options:Share": "whycam.options:Share",
    "whycam.cam.methods:control": "whycam.cam.methods:baselines",
    "whycam.metrics:Comparison": "whycam.comparison:Comparison",
    "whycam.metrics:Contest": "whycam.comparison:ComparisonContext",
    "whycam.metrics:MEASURES": "whycam.comparison:METRICS",
    "whycam.metrics:Measure": "whycam.comparison:Metric",
    "whycam.metrics:Standing": "whycam.comparison:Ranking",
    "whycam.metrics:compare": "whycam:compare",
    "whycam.metrics:destroyed": "whycam.metrics:reinitialized",
    "whycam.metrics:fill_in": "whycam.metrics:noisy_linear_imputation",
    "whycam.metrics:measure": "whycam.comparison:metric",
    "whycam.metrics:randomised": "whycam.metrics:reinitialized_by_part",
    "whycam.models:summarise": "whycam.models:summarize",
    "whycam.training:Progress": "whycam.training:StepProgress",
    "whycam.training:evaluate": "whycam.training:evaluate_model",
    "whycam.training:measure": "whycam.training:evaluate_logits",
    "whycam.training:predict": "whycam.training:predict_logits",
}


def attribute(written: str) -> object:
    module, name = written.split(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("old", MOVED)
def test_old_name_warns_and_is_the_new_object(old):
    with pytest.warns(
        DeprecationWarning,
        match=rf"is now {MOVED[old]}; the old name will be removed in version 0.3".replace(":", ".", 1),
    ):
        found = attribute(old)
    assert found is attribute(MOVED[old])


def test_old_names_of_attributes_warn(spec):
    with pytest.warns(DeprecationWarning, match="normalise is now normalize"):
        assert spec.preprocess.normalise == spec.preprocess.normalize


@pytest.mark.parametrize(
    ("owner", "old", "new"),
    [
        ("whycam.cam:LayerTrace", "curvature", "hvp"),
        ("whycam.cam:LayerTrace", "runs", "backend"),
        ("whycam.cam:LayerTrace", "in_terms", "per_channel"),
        ("whycam.cam:Trace", "curvature", "hvp"),
        ("whycam.cam:Trace", "plain", "returns_tensor"),
        ("whycam.cam:Trace", "root", "input_leaf"),
        ("whycam.cam:Trace", "rooted", "graph_scores"),
        ("whycam.cam:Method", "has_terms", "per_channel"),
        ("whycam.cam.passes.runner:PassRunner", "again", "trace_perturbed"),
        ("whycam.cam.passes.runner:PassRunner", "mixed", "autocast"),
        ("whycam.cam.passes.runner:PassRunner", "reads_more", "reads_whole_output"),
        ("whycam:Study", "neighbours", "neighbors"),
        ("whycam:Study", "suspects", "label_issues"),
        ("whycam:Study", "why_no_neighbours", "why_no_neighbors"),
        ("whycam.training:Recipe", "pixels", "pixels_per_image"),
    ],
)
def test_old_attribute_warns_and_reads_the_new_one(owner, old, new):
    class Owner:
        pass

    setattr(Owner, old, vars(attribute(owner))[old])
    setattr(Owner, new, "the value")
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(Owner(), old) == "the value"
    assert hasattr(attribute(owner), new) or new in attribute(owner).__dataclass_fields__


def test_old_arguments_of_plugins_warn():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    layers, images = whycam.cam.resolve_layers(model, "0"), torch.randn(1, 3, 6, 6)
    with pytest.warns(DeprecationWarning, match=r"capture\(hvp=...\)"):
        trace = whycam.cam.capture(
            model, images, layers, whycam.cam.targets.resolve.resolve_targets(1), curvature=["target"]
        )
    assert trace.hvp.keys() == {("0", "target")}
    with pytest.warns(DeprecationWarning, match=r"per_channel=True"):
        whycam.cam.method("", paper="", has_terms=True)
    with pytest.warns(DeprecationWarning, match='is now "hvp"'):
        whycam.cam.method("", paper="", needs=("gradients", "curvature"))


def test_unknown_names_stay_unknown():
    for module in (whycam, importlib.import_module("whycam.metrics")):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing
