"""What the server answers: the library's own maps, and one sentence for whatever it cannot explain."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from chunk_bytes import numbers_of, undone
from PIL import Image
from served import encoded
from torch import nn

import whycam
from whycam.app.desk import Ticket
from whycam.app.live import Choice, LiveModel
from whycam.cam.methods import METHODS
from whycam.data.batches import fit_pixels
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
    """Whether the page gets exactly the maps of ``expected``, of one method for targets "p" and "t"."""
    found = unpack(answer)
    assert set(found) == {(layer, target) for _, layer, target in expected.maps}
    for (layer, target), seen in found.items():
        raw = expected.map(layer=layer, target=target)[0].numpy()
        assert seen.shape == raw.shape
        # A byte's step, and the study's half precision.
        assert np.abs(seen - raw).max() <= np.ptp(np.append(raw, 0)) / 254 + np.abs(raw).max() * 2**-10
    return True


def classes_of(answer, shown=8):
    """The indices of the predicted class and of the one beside it."""
    label, predicted = struct.unpack_from("<HH", base64.b64decode(answer["columns"]), 4 * (3 + shown + 1 + 1))
    return predicted, label


def direct(photo, spec, model, layers, method, targets):
    pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
    inputs = spec.preprocess(fit_pixels(pixels.copy(), spec.preprocess.size)[None])
    return whycam.explain(model, inputs, layers, method, targets)


@pytest.mark.parametrize("method", ["gradcam", "shapleycam", "refinecam", "guidedgradcam", "sobel"])
def test_maps_are_the_librarys(method, server, photo, model, spec):
    answer = server.explain(photo, f"method={method}&layer=layer2[-2]&layer=layer4[-1]&class=dog")
    assert answer.status == 200
    expected = direct(photo, spec, model, ["layer2[-2]", "layer4[-1]"], method, {"p": None, "t": 5})
    assert same_maps(answer.json, expected)
    assert answer.json["method"]["name"] == method
    assert answer.json["file"] == {"width": 160, "height": 120}


def test_without_a_class_the_runner_up_is_compared(server, photo, model, spec):
    probabilities = direct(photo, spec, model, None, "gradcam", None).logits[0].softmax(0)
    order = probabilities.argsort(descending=True)
    answer = server.explain(photo).json
    assert classes_of(answer) == (int(order[0]), int(order[1]))
    columns = base64.b64decode(answer["columns"])
    assert struct.unpack_from("<f", columns)[0] == pytest.approx(float(probabilities.max()), abs=1e-5)


class Small(nn.Sequential):
    """Two layers to look at, a head that CAM itself needs, and nothing that takes long."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4),
        )  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A live network and the module behind it."""
    torch.manual_seed(3)
    spec = ModelSpec("small", ("a", "b", "c", "d"), replace(CIFAR10, size=(16, 16)))
    model = Small().eval()
    return LiveModel(model, spec, ["1", "4"]), model


@pytest.mark.parametrize("method", METHODS)
def test_every_offered_method_is_seen_and_the_runner_up_is_a_class_like_any_other(method, small, photo):
    live, model = small
    assert method in [offered["name"] for offered in live.core()["offered"]]
    layers = ["4"] if method == "cam" else ["1", "4"]  # the original CAM is defined for the last layer alone
    answer = live.explain(photo, Choice(method, tuple(layers)), Ticket())
    logits = direct(photo, live.spec, model, ["4"], "gradcam", None).logits[0]
    first, second = logits.argsort(descending=True)[:2].tolist()
    assert classes_of(answer, shown=4) == (first, second)
    assert same_maps(answer, direct(photo, live.spec, model, layers, method, {"p": first, "t": second}))


def test_a_method_of_the_image_alone_needs_no_layer(small, photo):
    live, _ = small
    (grid,) = live.explain(photo, Choice("sobel", ()), Ticket())["layers"]
    assert grid == {"name": "input", "height": 16, "width": 16}
    with pytest.raises(whycam.WhycamError, match="no layer is chosen"):
        live.explain(photo, Choice("refinecam", ()), Ticket())


def test_the_picture_is_what_the_network_saw(server, photo):
    (sheet,) = server.explain(photo).json["chunk"]["sheets"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["webp"]))))
    wanted = fit_pixels(np.asarray(Image.open(io.BytesIO(photo))).copy(), (32, 32))
    assert torch.equal(torch.from_numpy(seen.copy()).permute(2, 0, 1), wanted)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb():
    """A PNG of 60,000 × 60,000 pixels in a few hundred bytes."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(b"\0" * 10000)) + png_chunk(b"IEND", b"")


def just_too_large():
    return encoded(np.zeros((4100, 4100), np.uint8))


def animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
HOSTILE = {
    "empty": (b"", "holds no image"),
    "text": (b"not an image at all", "is not an image whycam reads"),
    "html": (b"<html><script>alert(1)</script></html>", "is not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "is not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "is not an image"),
    "pickle": (b"\x80\x04\x95cos\nsystem\n", "is not an image"),
    "truncated": (encoded(NOISE)[:9000], "truncated or damaged"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:900], "truncated or damaged"),
    "noise behind a signature": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "is not an image"),
    "bomb": (bomb(), "too large"),
    "just too large": (just_too_large(), "too large"),
    "animation": (animation(), "several frames"),
    "floats": (encoded(np.zeros((8, 8), np.float32), "TIFF"), "32-bit floats"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_sentence(name, server):
    content, sentence = HOSTILE[name]
    answer = server.explain(content)
    assert answer.status == 400
    assert sentence in answer.json["error"]
    assert "/" not in answer.json["error"]  # no path of the server's
    assert server.ask(path="/health").json == {"status": "ok"}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("layer=layer9", "layer 'layer9' is not offered here"),
        ("layer=conv1", "layer 'conv1' is not offered here"),
        ("layer=../../etc/passwd", "is not offered here"),
        ("", "no layer is chosen"),
        ("layer=layer4[-1]&method=evilcam", "method 'evilcam' is not offered here"),
        ("layer=layer4[-1]&method=gradcamm", "did you mean gradcam"),
        # Options are the caller's of the library: here a stranger would choose what an image costs.
        ("layer=layer4[-1]&method=noisy(gradcam,n=40000)", "method 'noisy(gradcam,n=40000)' is not offered here"),
        ("layer=layer4[-1]&method=fem(k='a')", "is not offered here"),
        ("layer=layer4[-1]&method=fem(k=3)", "is not offered here"),
        ("layer=layer4[-1]&method=", "method '' is not offered here"),
        ("layer=layer4[-1]&class=unicorn", "unknown class 'unicorn'"),
        ("layer=layer4[-1]&class=10", "unknown class '10'"),
        ("layer=layer4[-1]&class=-1", "unknown class '-1'"),
    ],
)
def test_unknown_choices_are_named(query, sentence, server, photo):
    answer = server.explain(photo, query)
    assert answer.status == 400
    assert sentence in answer.json["error"]


def test_gray_rotated_and_transparent_images_are_taken(server):
    gray = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = server.explain(encoded(gray, "JPEG", exif=exif))
    assert (rotated.status, rotated.json["file"]) == (200, {"width": 64, "height": 48})
    assert server.explain(encoded(np.dstack([gray] * 4))).status == 200
    assert server.explain(encoded(gray, "WEBP", lossless=True)).status == 200
    assert server.explain(encoded(np.zeros((1, 3000, 3), np.uint8))).status == 200


def test_the_page_is_the_reports_front_end(server):
    page = server.ask().body.decode()
    for name in ("color.js", "evidence.js", "report.css"):
        assert (files("whycam.report") / "assets" / name).read_text(encoding="utf-8") in page
