"""Sprite sheets are lossless."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from whycam.data.decode import encode_png
from whycam.errors import WhycamError
from whycam.report.sprites import SHEET_SIDE, pack_images


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 32, 32), (70, 32, 32), (12, 224, 224), (3, 20, 50), (90, 300, 260)]
)
def test_sheets_are_lossless(count, height, width):
    rng = np.random.default_rng(count)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    sheets = pack_images([(i + 5, encode_png(image)) for i, image in enumerate(images)])
    found = {}
    for sheet in sheets:
        picture = Image.open(io.BytesIO(sheet.webp))
        assert picture.format == "WEBP"
        assert max(picture.size) <= max(SHEET_SIDE, width, height)
        pixels = np.asarray(picture.convert("RGB"))
        for number, x, y, w, h in sheet.boxes:
            found[number] = pixels[y : y + h, x : x + w]
    assert sorted(found) == list(range(5, count + 5))
    for i, image in enumerate(images):
        assert (found[i + 5] == image).all()


def test_no_images_need_no_sheet():
    assert pack_images([]) == []


def test_a_damaged_image_is_named():
    with pytest.raises(WhycamError, match=r"images\.parquet: image 3 cannot be read .*: run the study again"):
        pack_images([(3, b"no picture")])
