"""Public names of version 0.1 that moved: each still works and warns with the new name."""

from __future__ import annotations

import importlib

import pytest

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
        DeprecationWarning, match=rf"is now {MOVED[old]}; the old name goes with version 0.3".replace(":", ".", 1)
    ):
        found = attribute(old)
    assert found is attribute(MOVED[old])


def test_old_names_of_attributes_warn(spec):
    with pytest.warns(DeprecationWarning, match="normalise is now normalize"):
        assert spec.preprocess.normalise == spec.preprocess.normalize


def test_unknown_names_stay_unknown():
    for module in (whycam, importlib.import_module("whycam.metrics")):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing
