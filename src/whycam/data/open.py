"""Open a data set of any kind; the path alone decides which."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from whycam.data import cifar, parquet
from whycam.data.bundled import bundled_source
from whycam.data.decode import EXTENSIONS
from whycam.data.download import partial_folder
from whycam.data.folder import open_folder
from whycam.data.labels import match_classes
from whycam.data.source import ArraySource, ImageSource
from whycam.errors import WhycamError

BUNDLED = "bundled"
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
_SUPPORTED = (
    "CIFAR-10 as .tar.gz or as the folder cifar-10-batches-bin or cifar-10-batches-py, Parquet files with the columns "
    "img or image and label, a folder of images (class/name.png, also inside train/ and test/), "
    f"or the word {BUNDLED!r}"
)


def open_source(
    path: str | Path,
    split: str = "test",
    *,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """Open a data set of any kind that whycam reads; the path alone decides which.

    Recognized are CIFAR-10 as the official binary or python archive, as the unpacked folder of either or the folder
    that holds it; Parquet in the layout of Hugging Face ``datasets`` (a file, or a folder of them); a folder of
    images in one folder per class, possibly inside ``train/``, ``test/`` or ``val/``; and the word "bundled", the
    1,000 images that come with whycam ("./bundled" is a folder of that name). CIFAR-10 has the same ids and digest
    from each of its layouts.

    Args:
        path: the data set.
        split: "train" or "test". For "test", "val" is taken where there is no other; data without splits are
            given whole for "test" and "all".
        size: (height, width) that images of varying size are made to cover and are cropped to at the center, as
            ``Preprocess`` does; a source whose images are all of one size needs none. CIFAR-10 ignores it.
        classes: a model's class names; labels then index these. Class folders are matched to them by name.

    Returns:
        The source. Image folders and large Parquet files are read lazily.

    Raises:
        WhycamError: the path is missing or of no recognized kind, the split does not exist, a file is truncated,
            damaged or unsafe, or a class is not among ``classes``.
    """
    if str(path) == BUNDLED:
        return _relabel(bundled_source(split), classes)
    root = Path(path)
    try:
        if root.is_dir():
            source = _open_directory(root, split, size, classes)
        elif root.exists():
            source = _open_file(root, split, size, classes)
        else:
            raise WhycamError(f"{root} does not exist: give {_SUPPORTED}")
    except OSError as error:
        raise WhycamError(f"{root} cannot be read ({error.strerror}): check its permissions") from error
    return _relabel(source, classes) if isinstance(source, ArraySource) else source


def _open_directory(path: Path, split: str, size: tuple[int, int] | None, classes: Sequence[str] | None) -> ImageSource:
    for folder in (path, path / cifar.BINARY_FOLDER, path / cifar.PYTHON_FOLDER):
        if cifar.is_binary_folder(folder) or cifar.is_python_folder(folder):
            return cifar.read_folder(folder, split)
    for name in _ARCHIVES:
        if (path / name).is_file():
            return cifar.read_archive(path / name, split)
    if parquet.find_parquet(path):
        return parquet.open_parquet(path, split, size=size, classes=classes)
    source = open_folder(path, split, size=size, classes=classes)
    if source is None:
        raise WhycamError(f"{path} is nothing whycam reads: it {_list_contents(path)}; give {_SUPPORTED}")
    return source


def _open_file(path: Path, split: str, size: tuple[int, int] | None, classes: Sequence[str] | None) -> ImageSource:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        return cifar.read_archive(path, split)
    if start == b"PAR1" or path.suffix.lower() == ".parquet":
        return parquet.open_parquet(path, split, size=size, classes=classes)
    if path.suffix == ".bin" or path.name in {name for names in cifar.BATCH_NAMES.values() for name in names}:
        what = "is one file of several; give the folder that it lies in"
    elif path.suffix.lower() in EXTENSIONS:
        what = "is one image; give a folder with one folder per class"
    elif not start:
        what = f"is empty; give {_SUPPORTED}"
    elif zipfile.is_zipfile(path):
        what = "is a zip archive; unpack it and give the folder"
    else:
        what = f"is nothing whycam reads; give {_SUPPORTED}"
    raise WhycamError(f"{path} {what}")


def _list_contents(path: Path) -> str:
    """What a folder of no recognized kind holds, in a few words."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    if not names:
        return "is empty"
    if partial_folder(path / cifar.BINARY_FOLDER).is_dir():
        return "holds an unfinished download (run whycam data again)"
    if any(Path(name).suffix.lower() in EXTENSIONS for name in names):
        return "holds images, but not in one folder per class"
    return f"holds {', '.join(names[:5])}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"


def _relabel(source: ArraySource, classes: Sequence[str] | None) -> ArraySource:
    if classes is None or tuple(classes) == source.classes:
        return source
    positions = match_classes(source.classes, classes, source.name)
    return replace(source, labels=positions[source.labels], classes=tuple(classes))
