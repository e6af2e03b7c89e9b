"""Sprite sheets: many images in one lossless WebP file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whycam.errors import WhycamError

SHEET_SIDE = 2048
"""Pixels of the largest sheet's side; unpacked in the browser, such a sheet takes 16 MB."""


@dataclass(frozen=True)
class Sheet:
    """A picture that holds many images.

    Attributes:
        webp: the lossless WebP file.
        boxes: (number, x, y, width, height) of each image in the sheet.
    """

    webp: bytes
    boxes: tuple[tuple[int, int, int, int, int], ...]

    def to_dict(self, encoded: str) -> dict[str, Any]:
        """Its entry in the report's data; ``encoded`` is ``webp`` as base64."""
        return {"webp": encoded, "boxes": [list(box) for box in self.boxes]}


def pack_images(images: Sequence[tuple[int, bytes]]) -> list[Sheet]:
    """Pack PNG files into as few sheets as possible, row by row, in cells of the largest image's size.

    Args:
        images: (number, PNG bytes) pairs.

    Raises:
        WhycamError: an image cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for number, png in images:
        try:
            pictures.append((number, Image.open(io.BytesIO(png)).convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise WhycamError(
                f"images.parquet: image {number} cannot be read ({error}): run the study again"
            ) from error
    if not pictures:
        return []
    width = max(picture.width for _, picture in pictures)
    height = max(picture.height for _, picture in pictures)
    columns, rows = max(1, SHEET_SIDE // width), max(1, SHEET_SIDE // height)
    sheets = []
    for start in range(0, len(pictures), columns * rows):
        part = pictures[start : start + columns * rows]
        # Nearly square: the lossless coder uses pixels above as well as pixels to the left.
        across = min(columns, max(1, round((len(part) * height / width) ** 0.5)))
        down = -(-len(part) // across)
        if down > rows:
            across, down = columns, -(-len(part) // columns)
        canvas = Image.new("RGB", (across * width, down * height))
        boxes = []
        for place, (number, picture) in enumerate(part):
            x, y = place % across * width, place // across * height
            canvas.paste(picture, (x, y))
            boxes.append((number, x, y, picture.width, picture.height))
        out = io.BytesIO()
        canvas.save(out, "WEBP", lossless=True, quality=60, method=3, exact=True)
        sheets.append(Sheet(out.getvalue(), tuple(boxes)))
    return sheets
