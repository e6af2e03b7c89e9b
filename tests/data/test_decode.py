"""Image files of every kind, decoded by the real decoders."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from whycam.data import decode_image, encode_png
from whycam.data.decode import MAX_PIXELS
from whycam.errors import WhycamError

RNG_PIXELS = (np.arange(12 * 9 * 3) * 37 % 256).astype(np.uint8).reshape(12, 9, 3)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_lossless_forms_keep_every_pixel(form, options):
    pixels = decode_image(encoded(Image.fromarray(RNG_PIXELS), form, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, RNG_PIXELS)


def test_gray_palette_and_bilevel():
    gray = RNG_PIXELS[:, :, 0]
    for form in ("PNG", "BMP", "TIFF", "GIF"):
        assert np.array_equal(decode_image(encoded(Image.fromarray(gray), form)), np.repeat(gray[..., None], 3, 2))
    palette = Image.fromarray(RNG_PIXELS).quantize(16)
    assert np.array_equal(decode_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(gray > 128)
    assert np.array_equal(decode_image(encoded(bilevel, "PNG"))[..., 0], (gray > 128) * np.uint8(255))


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = (255, 0, 0)
    rgba[0, :, 3] = (0, 255, 51)
    expected = np.array([[[255, 255, 255], [255, 0, 0], [255, 204, 204]]], np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(rgba), "PNG")), expected)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    assert decode_image(encoded(palette, "PNG", transparency=0))[0, 0].tolist() == [255, 255, 255]
    gray = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert decode_image(encoded(gray, "PNG"))[0].tolist() == [[255] * 3, [10] * 3]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(form):
    deep = np.array([[0, 1, 128, 129, 255, 256, 32768, 65535]], np.uint16)
    expected = np.round(deep.astype(np.float64) / 65535 * 255).astype(np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(deep), form))[..., 1], expected)


def test_cmyk():
    cmyk = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    pixels = decode_image(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    assert pixels[0].tolist() == [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode_image(encoded(flat, "JPEG", quality=95)).reshape(-1, 3).astype(int)
    assert np.abs(red - (255, 0, 0)).max() <= 6  # stored inverted by Adobe's convention, lossy


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(RNG_PIXELS), form, exif=exif, **options)
    stored = Image.fromarray(RNG_PIXELS)
    stored.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(stored)
    assert np.array_equal(decode_image(data), np.asarray(expected))


def test_orientation_six_turns_clockwise():
    """The case of a telephone held upright: the top of the picture is at the left of what is stored."""
    stored = np.zeros((4, 8, 3), np.uint8)
    stored[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_image(encoded(Image.fromarray(stored), "PNG", exif=exif))
    assert pixels.shape == (8, 4, 3)
    assert pixels[0].min() == 255
    assert pixels[1:].max() == 0


def test_a_damaged_exif_block_does_not_matter():
    data = encoded(Image.fromarray(RNG_PIXELS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert decode_image(data).shape == RNG_PIXELS.shape


def refused(source: object, name: str | None = "cat.png") -> str:
    with pytest.raises(WhycamError) as caught:
        decode_image(source, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})])
def test_several_frames_are_refused(form, options):
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 128, 255)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert refused(data) == "cat.png holds several frames or pages: save the one you mean as a file of its own"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (10_000, 10_000), (60_000, 60_000), (1, MAX_PIXELS + 1)])
def test_huge_images_are_refused_before_decoding(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns at 89 megapixels
        assert "is too large" in refused(png_header(width, height))


def test_images_without_pixels():
    assert "cat.png" in refused(png_header(0, 5))


def test_floats_have_no_defined_brightness():
    assert "stores 32-bit floats" in refused(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    assert "stores 32-bit integers" in refused(encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(form):
    data = encoded(Image.fromarray(np.repeat(np.repeat(RNG_PIXELS, 8, 0), 8, 1)), form)
    for share in (0.3, 0.7, 0.9):
        assert refused(data[: int(len(data) * share)]).startswith("cat.png is")


def test_missing_foreign_and_empty_files(tmp_path):
    file = tmp_path / "cat.png"
    assert refused(file, None) == f"{file} does not exist: check the path"
    file.touch()
    assert refused(file, None) == f"{file} is empty: give a PNG, JPEG, WebP, BMP, GIF or TIFF file"
    file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # Pillow would start Ghostscript
    assert "is not an image whycam reads" in refused(file, None)
    assert "cannot be read" in refused(tmp_path, None)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    content = bytearray(encoded(Image.fromarray(RNG_PIXELS), form))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WhycamError):  # any other exception fails the test
        pixels = decode_image(bytes(content), "cat.png")
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_png_round_trip():
    assert np.array_equal(decode_image(encode_png(RNG_PIXELS)), RNG_PIXELS)
    assert np.array_equal(decode_image(encode_png(RNG_PIXELS[..., 0]))[..., 2], RNG_PIXELS[..., 0])
    with pytest.raises(WhycamError, match=r"got \(2, 2\) float64"):
        encode_png(np.zeros((2, 2)))
