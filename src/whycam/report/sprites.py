"""Images in lossless sheets: one WebP instead of a thousand files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whycam.errors import WhycamError

SHEET_SIDE = 2048
"""The largest sheet in pixels: 16 MB once the browser has unpacked it."""


@dataclass(frozen=True)
class Sheet:
    """One picture that holds many, and where each of them lies in it.

    Attributes:
        webp: the lossless WebP file.
        boxes: (number, x, y, width, height) for each image; the number is its place in the given order.
    """

    webp: bytes
    boxes: tuple[tuple[int, int, int, int, int], ...]

    def to_dict(self, encoded: str) -> dict[str, Any]:
        """The form in the report's data block."""
        return {"webp": encoded, "boxes": [list(box) for box in self.boxes]}


def pack_images(images: Sequence[tuple[int, bytes]]) -> list[Sheet]:
    """LayerInfo PNG files into as few sheets as hold them, row by row, all cells as large as the largest image.

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
        # A squarer sheet than one long row: neighbors above help the lossless coder as much as those beside.
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
