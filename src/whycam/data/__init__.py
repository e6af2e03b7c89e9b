"""Data sets in several layouts. Packages other than torch and numpy are imported only when a layout needs them."""

from whycam.data.cifar import CIFAR10_CLASSES
from whycam.data.decode import decode_image, encode_png
from whycam.data.download import OFFICIAL_URL, download_cifar10
from whycam.data.open import open_source
from whycam.data.preprocess import CIFAR10, Preprocess
from whycam.data.source import ArraySource, ImageSource
from whycam.data.subset import Subset, take

__all__ = [
    "CIFAR10", "CIFAR10_CLASSES", "OFFICIAL_URL", "ArraySource", "ImageSource", "Preprocess", "Subset",
    "decode_image", "download_cifar10", "encode_png", "open_source", "take",
]  # fmt: skip
