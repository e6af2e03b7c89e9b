"""Which request gets which answer, on the live page and beside a report."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import encoded, status_of

TRAVERSALS = (
    "/../../../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
    "/report_files/../manifest.json", "/report_files/..%2fmanifest.json", "/report_files/%00", "/static/app.js",
    "/manifest.json", "/report.html", "/live/../../etc/passwd", "/..\\..\\win.ini", "/report_files//etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_paths_outside_the_site_are_not_found(path, server, study_server):
    for served in (server, study_server):
        response = served.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert status_of(response) in (400, 404)
        assert b"root:" not in response
        assert b"weights_sha256" not in response


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
def test_hostile_files_are_refused_in_one_sentence(name, server):
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


def test_gray_rotated_and_transparent_images_are_accepted(server):
    gray = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = server.explain(encoded(gray, "JPEG", exif=exif))
    assert (rotated.status, rotated.json["file"]) == (200, {"width": 64, "height": 48})
    assert server.explain(encoded(np.dstack([gray] * 4))).status == 200
    assert server.explain(encoded(gray, "WEBP", lossless=True)).status == 200
    assert server.explain(encoded(np.zeros((1, 3000, 3), np.uint8))).status == 200


def test_out_of_memory_answers_503_and_serving_continues(launch, photo):
    served = launch(script=[str(Path(__file__).with_name("serve_without_memory.py"))])
    answer = served.explain(photo, "layer=layer4%5B-1%5D&method=layercam")
    assert answer.status == 503
    assert answer.json == {
        "error": "memory is full: 1,073,741,824 MiB more were asked for; choose fewer layers or another method"
    }
    assert served.explain(photo).status == 200
    status, _, err = served.stop()
    assert status == 0
    assert err.count("memory is full") == len(err.strip().splitlines()) == 1
