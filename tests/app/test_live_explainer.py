"""The live explainer returns the maps of `whycam.explain`, and leaves the model as it was."""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from chunk_bytes import numbers_of, undone
from PIL import Image
from torch import nn

import whycam
from whycam.app.live_explainer import Choice, LiveExplainer
from whycam.app.live_payload import live_core
from whycam.app.work_queue import CancelToken, WorkCancelledError
from whycam.cam.methods import METHODS
from whycam.data.batches import resize_center_crop_uint8
from whycam.data.preprocess import CIFAR10
from whycam.models import ModelSpec
from whycam.report.encoding import MISSING, dequantize


def unpack(answer):
    """(name of the layer or of what stands in its place, target) → the map as the page sees it."""
    combinations = [
        (grid["name"], target, grid["height"], grid["width"]) for grid in answer["layers"] for target in ("p", "t")
    ]
    numbers, zero, flags, data = numbers_of(answer["chunk"]["maps"], len(combinations))
    at, found = 0, {}
    for i, (name, target, height, width) in enumerate(combinations):
        cells = undone(data[at : at + height * width], height, width)[None]
        at += height * width
        assert not flags[i] & MISSING
        found[name, target] = dequantize(cells, numbers[0, i : i + 1], zero[i : i + 1])[0].reshape(height, width)
    assert at == len(data)
    return found


def same_maps(answer, expected):
    """Whether the page gets the maps of ``expected`` (one method, targets "p" and "t"), up to quantization."""
    found = unpack(answer)
    assert set(found) == {(layer, target) for _, layer, target in expected.maps}
    for (layer, target), seen in found.items():
        raw = expected.map(layer=layer, target=target)[0].numpy()
        assert seen.shape == raw.shape
        # One quantization step, and the half precision of a study's maps.
        assert np.abs(seen - raw).max() <= np.ptp(np.append(raw, 0)) / 254 + np.abs(raw).max() * 2**-10
    return True


def classes_of(answer, shown=8):
    """The indices of the predicted class and of the one beside it."""
    label, predicted = struct.unpack_from("<HH", base64.b64decode(answer["columns"]), 4 * (3 + shown + 1 + 1))
    return predicted, label


def direct(photo, spec, model, layers, method, targets):
    pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
    inputs = spec.preprocess(resize_center_crop_uint8(pixels.copy(), spec.preprocess.size)[None])
    return whycam.explain(model, inputs, layers, method, targets)


@pytest.mark.parametrize("method", ["gradcam", "shapleycam", "refinecam", "guidedgradcam", "sobel"])
def test_maps_equal_those_of_explain(method, server, photo, model, spec):
    answer = server.explain(photo, f"method={method}&layer=layer2[-2]&layer=layer4[-1]&class=dog")
    assert answer.status == 200
    expected = direct(photo, spec, model, ["layer2[-2]", "layer4[-1]"], method, {"p": None, "t": 5})
    assert same_maps(answer.json, expected)
    assert answer.json["method"]["name"] == method
    assert answer.json["file"] == {"width": 160, "height": 120}


def test_second_class_defaults_to_the_runner_up(server, photo, model, spec):
    probabilities = direct(photo, spec, model, None, "gradcam", None).logits[0].softmax(0)
    order = probabilities.argsort(descending=True)
    answer = server.explain(photo).json
    assert classes_of(answer) == (int(order[0]), int(order[1]))
    columns = base64.b64decode(answer["columns"])
    assert struct.unpack_from("<f", columns)[0] == pytest.approx(float(probabilities.max()), abs=1e-5)


class Small(nn.Sequential):
    """Two layers to explain and the linear head that CAM needs."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4),
        )  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A live explainer and the model behind it."""
    torch.manual_seed(3)
    spec = ModelSpec("small", ("a", "b", "c", "d"), replace(CIFAR10, size=(16, 16)))
    model = Small().eval()
    return LiveExplainer(model, spec, ["1", "4"]), model


@pytest.mark.parametrize("method", METHODS)
def test_every_method_treats_the_runner_up_like_any_class(method, small, photo):
    live, model = small
    assert method in [offered["name"] for offered in live_core(live)["offered"]]
    layers = ["4"] if method == "cam" else ["1", "4"]  # the original CAM is defined for the last layer alone
    answer = live.explain(photo, Choice(method, tuple(layers)), CancelToken())
    logits = direct(photo, live.spec, model, ["4"], "gradcam", None).logits[0]
    first, second = logits.argsort(descending=True)[:2].tolist()
    assert classes_of(answer, shown=4) == (first, second)
    assert same_maps(answer, direct(photo, live.spec, model, layers, method, {"p": first, "t": second}))


def test_methods_of_the_image_alone_need_no_layer(small, photo):
    live, _ = small
    (grid,) = live.explain(photo, Choice("sobel", ()), CancelToken())["layers"]
    assert grid == {"name": "input", "height": 16, "width": 16}
    with pytest.raises(whycam.WhycamError, match="no layer is chosen"):
        live.explain(photo, Choice("refinecam", ()), CancelToken())


def test_returned_image_equals_the_network_input(server, photo):
    (sheet,) = server.explain(photo).json["chunk"]["sheets"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["webp"]))))
    wanted = resize_center_crop_uint8(np.asarray(Image.open(io.BytesIO(photo))).copy(), (32, 32))
    assert torch.equal(torch.from_numpy(seen.copy()).permute(2, 0, 1), wanted)


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]


def test_model_keeps_no_hooks(small, photo):
    live, model = small
    assert hooks_of(model) == []
    live.explain(photo, Choice("gradcam", ("4",)), CancelToken())
    assert hooks_of(model) == []


def test_canceled_work_stops_before_the_next_layer(small, photo):
    live, model = small
    token, reached = CancelToken(), []
    handles = [
        model[0].register_forward_hook(lambda *_: token.cancel()),
        model[3].register_forward_hook(lambda *_: reached.append(3)),
    ]
    try:
        with pytest.raises(WorkCancelledError):
            live.explain(photo, Choice("gradcam", ("4",)), token)
        assert reached == []
        assert len(hooks_of(model)) == 2
    finally:
        for handle in handles:
            handle.remove()
