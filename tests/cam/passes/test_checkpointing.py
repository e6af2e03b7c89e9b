"""Gradient checkpointing: without reentrance maps are the same; with it there is a clear error."""

from __future__ import annotations

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import Checkpointed

import whycam
from whycam import WhycamError
from whycam.cam.inspect import inspect_layers

METHODS = ["gradcam", "shapleycam", "fullgrad", "guidedbackprop", "inputgradient", "noisy(gradcam, n=2)",
           "ablationcam", "scorecam", "reciprocam", "eigencam"]  # fmt: skip
WITHOUT_GRADIENTS = ["ablationcam", "scorecam", "reciprocam", "eigencam"]


def make(reentrant):
    torch.manual_seed(0)
    return Checkpointed(reentrant).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("layer", ["stem", "block[0]", "block", "behind"])
def test_non_reentrant_checkpointing_gives_the_same_maps(layer):
    plain, images = make(None)
    expected = whycam.explain(plain, images, layer, METHODS, 1).maps
    for key, raw in whycam.explain(make(False)[0], images, layer, METHODS, 1).maps.items():
        torch.testing.assert_close(raw, expected[key], rtol=0, atol=1e-12, msg=str(key))


# torch warns about a checkpointed block whose inputs need no gradients; this does not matter here.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize(
    ("layer", "method"),
    [
        ("stem", "gradcam"), ("stem", "shapleycam"), ("block[0]", "gradcam"), ("block", "noisy(gradcam, n=2)"),
        (None, "gradcam"), ("stem", "fullgrad"), ("behind", "fullgrad"), ("behind", "guidedbackprop"),
        ("behind", "guidedgradcam"), ("behind", "inputgradient"),
    ],
)  # fmt: skip
def test_reentrant_checkpointing_is_refused(layer, method):
    model, images = make(True)
    before = snapshot(model)
    with pytest.raises(WhycamError, match="use_reentrant=True") as raised:
        whycam.explain(model, images, layer, method, 1)
    assert "pass use_reentrant=False" in str(raised.value)
    assert "no_grad" not in str(raised.value)
    assert_unchanged(model, before)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpointing_without_gradients_through_it():
    (plain, images), (model, _) = make(None), make(True)
    for layer, methods in {"stem": WITHOUT_GRADIENTS, "block[0]": WITHOUT_GRADIENTS, "behind": ["gradcam"]}.items():
        expected = whycam.explain(plain, images, layer, methods, 1).maps
        for key, raw in whycam.explain(model, images, layer, methods, 1).maps.items():
            torch.testing.assert_close(raw, expected[key], rtol=0, atol=1e-12, msg=str(key))
    with pytest.raises(WhycamError, match="pass use_reentrant=False"):
        inspect_layers(model, images)
