"""Draw the 1,000 bundled images from the official CIFAR-10 test set and write them into the package.

    python tools/make_bundled_images.py CIFAR10

CIFAR10 is anything that whycam opens as CIFAR-10: the official archive, its folder, or the Parquet files. The seed
below decides the images; with the same versions of Pillow and libwebp the files are identical byte for byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

from whycam.data import open_source
from whycam.data.bundled import write_bundle
from whycam.data.source import ArraySource

SEED = 0
FOLDER = Path(__file__).resolve().parent.parent / "src" / "whycam" / "assets" / "cifar10-1000"


def main(path: str) -> None:
    """Write ``images.webp`` and ``index.json`` from the test set at ``path``."""
    source = open_source(path, "test")
    if not isinstance(source, ArraySource) or source.name != "CIFAR-10":
        raise SystemExit(f"{path} is {source.name}, not the official CIFAR-10")
    mosaic, index = write_bundle(source.images, source.labels, SEED)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "images.webp").write_bytes(mosaic)
    (FOLDER / "index.json").write_text(index, encoding="utf-8")
    sys.stdout.write(f"{FOLDER}: {len(mosaic):,} bytes of images, {len(index.encode()):,} of index\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
