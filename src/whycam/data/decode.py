"""Decode image files to 8-bit RGB, or refuse them with one clear error."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whycam.errors import WhycamError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 2**26
"""Largest image that is decoded, in pixels (67 megapixels: 200 MB as RGB)."""

# Only these decoders may look at a file: among Pillow's others are some that start programs (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION_TAG = 0x0112


def decode_image(
    source: str | os.PathLike[str] | bytes, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Read one image file as it is meant to be seen.

    Gray and palette images become RGB; transparent parts are laid over white, as a page shows them; 16-bit gray is
    rounded to 8 bits; CMYK is converted without a color profile; the EXIF orientation is applied. The contents
    decide what kind of file it is, not its extension.

    Args:
        source: a path, or the encoded bytes themselves.
        name: what error messages call the image; the path if not given.
        max_pixels: refuse larger images; at most ``MAX_PIXELS``.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        WhycamError: the file is missing, unreadable, empty, truncated, not an image, animated, of more than
            ``max_pixels`` pixels (checked before decoding) or of a depth that has no defined 8-bit form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_without_warning_filter(source, name, max_pixels=max_pixels)


def decode_without_warning_filter(
    source: str | os.PathLike[str] | bytes, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """``decode_image`` for callers that already silence warnings, which only one thread at a time may do."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("Pillow", "study", "reading images") from None
    label = name or ("the image" if isinstance(source, bytes) else os.fspath(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            _check_header(image, label, max_pixels)
            image.load()
            return np.ascontiguousarray(_upright(_to_rgb(image), _orientation(image)))
    except WhycamError:
        raise
    except FileNotFoundError:
        raise WhycamError(f"{label} does not exist: check the path") from None
    except (PermissionError, IsADirectoryError) as error:
        raise WhycamError(f"{label} cannot be read ({error.strerror}): give a readable image file") from None
    except UnidentifiedImageError:
        what = "is empty" if _is_empty(source) else "is not an image whycam reads"
        raise WhycamError(f"{label} {what}: give a PNG, JPEG, WebP, BMP, GIF or TIFF file") from None
    except Image.DecompressionBombError:
        raise WhycamError(f"{label} is too large: at most {max_pixels:,} pixels are decoded, so shrink it") from None
    except Exception as error:
        # Decoders answer damaged files with any exception there is; all of them mean the same to the user.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WhycamError(f"{label} is truncated or damaged ({reason}): replace the file") from error


def encode_png(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) gray uint8 pixels as a PNG file, losslessly."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("Pillow", "study", "writing images") from None
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise WhycamError(f"a PNG is written from (H, W, 3) or (H, W) uint8 pixels, got {pixels.shape} {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _check_header(image: Image.Image, label: str, max_pixels: int) -> None:
    """Refuse, before any pixel is decoded, what cannot or should not be read."""
    width, height = image.size
    if width < 1 or height < 1:
        raise WhycamError(f"{label} has no pixels ({width}×{height}): replace the file")
    if width * height > max_pixels:
        raise WhycamError(
            f"{label} is too large ({width:,}×{height:,}): at most {max_pixels:,} pixels are decoded, so shrink it"
        )
    # An MPO is a photograph with a preview or depth map behind it; its first picture is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise WhycamError(f"{label} holds several frames or pages: save the one you mean as a file of its own")
    if image.mode in ("I", "F"):
        depth = "32-bit floats" if image.mode == "F" else "32-bit integers"
        raise WhycamError(f"{label} stores {depth}, which have no defined brightness: convert it to 8 or 16 bits")


def _to_rgb(image: Image.Image) -> Pixels:
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips; 65535 / 255 = 257 exactly.
        gray = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    pixels: Pixels = np.asarray(image.convert("RGB"))
    return pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; a file whose EXIF block is missing or damaged counts as upright."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # as in decoding: a damaged block raises anything
        return 1
    return value if isinstance(value, int) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's rotation; EXIF 2.3, section 4.6.4, tag 0x0112."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _is_empty(source: str | os.PathLike[str] | bytes) -> bool:
    return not source if isinstance(source, bytes) else Path(source).stat().st_size == 0
