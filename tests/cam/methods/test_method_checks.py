"""Bad registrations and in-place changes are refused; methods never run the network on an empty batch."""

from __future__ import annotations

import pytest
import torch
from networks import InPlace
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import METHODS, method
from whycam.cli.main import main


@pytest.mark.parametrize(
    ("title", "options", "message"),
    [
        ("Augmented", {}, "'augmented' is a combinator, so a method cannot be titled 'Augmented'"),
        ("My CAM (fast)", {}, r"cannot be titled 'My CAM \(fast\)': parentheses and commas are for its options"),
        ("Mine", {"needs": ("gradient",)}, r"method 'Mine': there is no need 'gradient' \(did you mean gradients"),
        ("Mine", {"scope": "layerz"}, r"method 'Mine': there is no scope 'layerz' \(did you mean layer"),
    ],
)
def test_bad_registrations_are_refused(title, options, message):
    before = dict(METHODS)
    with pytest.raises(WhycamError, match=message):
        method(title, paper="nowhere", **options)(lambda trace: trace.activations.sum(1))
    assert before == METHODS


def test_listing_says_what_controls_need(capsys):
    assert main(["methods"]) in (0, None)
    listed = capsys.readouterr().out
    for line in ("Sobel & Feldman, 1968", "a Gaussian at the image center"):
        assert f"control: {line}; needs images only" in listed
    assert "control: random channel weights; needs activations only" in listed


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("activations", lambda trace: trace.activations.relu_()),
        ("gradients", lambda trace: trace.gradients[0].zero_()),
        ("logits", lambda trace: trace.logits.mul_(2)),
        ("scores", lambda trace: trace.scores.exp_()),
    ],
)
@pytest.mark.parametrize("scope", ["layer", "layers"])
def test_method_that_changes_its_trace_is_refused(what, change, scope):
    def careless(traces):
        for trace in [traces] if scope == "layer" else traces:
            change(trace)
        return (traces if scope == "layer" else traces[0]).activations.sum(dim=1)

    careless.__doc__ = "It works in place."
    made = method("Careless", paper="nowhere", scope=scope)(careless)
    try:
        with pytest.raises(WhycamError, match=f"method 'careless' changes the {what} in place, which all methods read"):
            whycam.explain(InPlace().eval(), torch.randn(2, 3, 9, 9), "conv", [made, "gradcam"])
    finally:
        METHODS.pop("careless", None)


def test_network_never_runs_on_an_empty_batch():
    class Strict(InPlace):
        def forward(self, x):
            assert len(x), "no images"
            return super().forward(x)

    torch.manual_seed(0)
    model, images = Strict().eval(), torch.randn(2, 3, 9, 9)
    nn.init.zeros_(model.conv.weight)
    explained = whycam.explain(
        model, images, "conv", ["scorecam", "sscam(n=2)", "iscam(n=2)", "ablationcam", "groupcam"]
    )
    assert all(bool(raw.isfinite().all()) for raw in explained.maps.values())
