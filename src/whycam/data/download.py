"""Download CIFAR-10, verify it, and unpack it atomically."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from whycam.data.archive import open_archive, regular_files
from whycam.data.cifar import BATCH_BYTES, BINARY_FOLDER, SHA256
from whycam.data.fetch import Download, DownloadProgress, RetryPolicy
from whycam.errors import WhycamError
from whycam.files import sha256_of, sync, writing

if sys.platform != "win32":
    import fcntl

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MAX_OPTIONAL_BYTES = 2**16  # of a text file beside the data


@dataclass(frozen=True)
class Archive:
    """An archive that is downloaded: its address, what it must be, and what must be in it.

    Attributes:
        url: where it is.
        size: bytes.
        sha256: of the whole archive, hex.
        folder: the folder inside it, and the name of the finished folder.
        file_size: bytes of every file in ``files``.
        files: SHA-256 (hex) by name.
        optional_files: small files that may lie beside them.
    """

    url: str
    size: int
    sha256: str
    folder: str
    file_size: int
    files: Mapping[str, str]
    optional_files: frozenset[str] = field(default=frozenset({"batches.meta.txt", "readme.html"}))

    @property
    def name(self) -> str:
        """The archive's file name."""
        return f"{self.folder.replace('-batches-bin', '-binary')}.tar.gz"


CIFAR10_BINARY = Archive(
    url=OFFICIAL_URL,
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder=BINARY_FOLDER,
    file_size=BATCH_BYTES,
    files=SHA256,
)


def download_cifar10(
    directory: str | Path, *, url: str = OFFICIAL_URL, progress: DownloadProgress | None = None
) -> Path:
    """Download CIFAR-10's official binary archive and unpack it into ``directory/cifar-10-batches-bin``.

    A broken download is tried again a few times. The archive and each file in it are verified by size and SHA-256,
    and the folder appears under its name only when it is complete, so that a kill at any moment leaves nothing
    half-written there. A folder that is there already is verified and returned. An archive that was downloaded by
    hand and put into ``directory`` is used instead of the network, and stays.

    Args:
        directory: where to put the folder; made if missing.
        url: a mirror of the official archive.
        progress: called with (bytes so far, bytes in all) while downloading.

    Returns:
        The folder.

    Raises:
        WhycamError: no network, a wrong size or checksum, a full or read-only disk, another download into the
            same directory, or something else under the folder's name.
        MissingExtraError: pooch, from the ``study`` extra, is needed and not installed.
    """
    return download_archive(replace(CIFAR10_BINARY, url=url), Path(directory), progress=progress)


def download_archive(
    archive: Archive,
    directory: Path,
    *,
    progress: DownloadProgress | None = None,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008
) -> Path:
    """``download_cifar10`` for any archive of that layout."""
    target = directory / archive.folder
    if directory.name == archive.folder and directory.is_dir() and not _is_empty_folder(directory):
        target = directory
    work = partial_folder(target)
    with writing(directory):
        if target.exists() and not _is_empty_folder(target):
            if problem := _problem(target, archive):
                raise WhycamError(f"{target} exists but {problem}: move it away, or choose another directory")
            shutil.rmtree(work, ignore_errors=True)  # left by a kill after the folder was in place
            return target
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory), _new_folder(work):
            packed = directory / archive.name
            if packed.is_file():
                _verify_own_archive(packed, archive)
            else:
                packed = work / archive.name
                _fetch(archive, directory, packed, progress, retry)
            _unpack(packed, archive, work)
            (work / archive.folder).replace(target)
            sync(directory)
    return target


def partial_folder(target: Path) -> Path:
    """Where the folder ``target`` is made; it is there after a kill only."""
    return target.with_name(f".{target.name}.partial")


def _fetch(
    archive: Archive, directory: Path, packed: Path, progress: DownloadProgress | None, retry: RetryPolicy
) -> None:
    needed, free = archive.size + len(archive.files) * archive.file_size, shutil.disk_usage(directory).free
    if free < needed:
        raise WhycamError(
            f"{directory} has {free / 1e6:,.0f} MB free, CIFAR-10 needs {needed / 1e6:,.0f} MB while it is unpacked: "
            "make room, or choose another directory"
        )
    by_hand = (
        f"download {archive.url} on another machine and put it at {directory / archive.name}, or use the images that "
        "come with whycam (the word 'bundled' in place of a path)"
    )
    Download(archive.url, archive.size, archive.sha256, by_hand, progress, retry).save(packed)


def _verify_own_archive(path: Path, archive: Archive) -> None:
    size = path.stat().st_size
    if size != archive.size:
        problem = f"{size:,} bytes instead of {archive.size:,}: it is truncated"
    elif (digest := sha256_of(path)) != archive.sha256:
        problem = f"the SHA-256 {digest} instead of {archive.sha256}: it is damaged"
    else:
        return
    raise WhycamError(f"{path} has {problem} or another file; remove {path} to download it again")


def _unpack(packed: Path, archive: Archive, work: Path) -> None:
    """Unpack into ``work``, verify, and have it on the disk."""
    with open_archive(packed) as tar:
        for member in regular_files(tar, packed):
            _check_member(member, packed, archive)
            tar.extract(member, work, set_attrs=False, filter="data")
    folder = work / archive.folder
    if problem := _problem(folder, archive):
        raise WhycamError(f"{packed} {problem}: it was not unpacked")
    for path in (*folder.iterdir(), folder):
        sync(path)


def _check_member(member: tarfile.TarInfo, packed: Path, archive: Archive) -> None:
    inside = PurePosixPath(member.name)
    if str(inside.parent) != archive.folder or inside.name not in {*archive.files, *archive.optional_files}:
        raise WhycamError(f"{packed} holds {member.name!r}, which does not belong there: it was not unpacked")
    if member.size != archive.file_size if inside.name in archive.files else member.size > _MAX_OPTIONAL_BYTES:
        raise WhycamError(f"{packed}: {inside} has {member.size:,} bytes, which is wrong: it was not unpacked")


def _problem(folder: Path, archive: Archive) -> str | None:
    """What keeps a folder from being complete, as the part of a sentence that follows its name."""
    for name, expected in archive.files.items():
        file = folder / name
        if not file.is_file():
            return f"has no {name}"
        if (size := file.stat().st_size) != archive.file_size:
            return f"has a {name} of {size:,} bytes instead of {archive.file_size:,}"
        if sha256_of(file) != expected:
            return f"has a {name} with a wrong SHA-256"
    return None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second download out of the directory; the system releases the lock of a killed process."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WhycamError(f"{directory} is being downloaded into by another process: wait for it") from None
        except OSError:
            pass  # a network file system without locks on folders
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Make an empty folder, which is removed in the end."""
    shutil.rmtree(path, ignore_errors=True)  # left by a kill
    path.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
