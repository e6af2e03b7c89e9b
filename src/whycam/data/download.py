"""CIFAR-10 from its home page onto the disk: complete and verified, or not there at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from whycam.data.archive import Member, members
from whycam.data.cifar import BATCH, BINARY_FOLDER, RECORD, SHA256
from whycam.data.fetch import Patience, Progress, Transfer, discard, disk_error
from whycam.errors import WhycamError

if sys.platform != "win32":
    import fcntl

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MAX_EXTRA = 2**16  # bytes of a text file beside the data
_CHUNK = 2**20


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
        extras: small files that may lie beside them.
    """

    url: str
    size: int
    sha256: str
    folder: str
    file_size: int
    files: Mapping[str, str]
    extras: frozenset[str] = field(default=frozenset({"batches.meta.txt", "readme.html"}))

    @property
    def name(self) -> str:
        """The archive's file name."""
        return f"{self.folder.replace('-batches-bin', '-binary')}.tar.gz"


CIFAR10_BINARY = Archive(
    url=OFFICIAL_URL,
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder=BINARY_FOLDER,
    file_size=BATCH * RECORD,
    files=SHA256,
)


def download_cifar10(directory: str | Path, *, url: str = OFFICIAL_URL, progress: Progress | None = None) -> Path:
    """Download CIFAR-10's official binary archive and unpack it into ``directory/cifar-10-batches-bin``.

    A broken download is continued by the next call. The archive and each file in it are verified by size and
    SHA-256, and the folder appears under its name only when it is whole, so that a kill at any moment leaves
    nothing half-written there. A folder that is there already is verified and returned. An archive that was
    downloaded by hand and put into ``directory`` is used instead of the network, and stays.

    Args:
        directory: where to put the folder; made if missing.
        url: a mirror of the official archive.
        progress: called with (bytes so far, bytes in all) while downloading.

    Returns:
        The folder.

    Raises:
        WhycamError: no network, a wrong size or checksum, a full or read-only disk, another download into the
            same directory, or something else under the folder's name.
    """
    return download_archive(replace(CIFAR10_BINARY, url=url), Path(directory), progress=progress)


def download_archive(
    archive: Archive, directory: Path, *, progress: Progress | None = None, patience: Patience | None = None
) -> Path:
    """``download_cifar10`` for any archive of that layout."""
    target = directory / archive.folder
    if directory.name == archive.folder and directory.is_dir() and any(directory.iterdir()):
        target = directory
    part = directory / f"{archive.name}.part"
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            _verify_folder(target, archive)
            discard(part)  # left by a kill after the folder was in place
            return target
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            _download_locked(archive, directory, part, target, progress, patience or Patience())
    except OSError as error:
        raise disk_error(directory, error) from error
    return target


def _download_locked(
    archive: Archive, directory: Path, part: Path, target: Path, progress: Progress | None, patience: Patience
) -> None:
    own = directory / archive.name
    if own.is_file():
        _verify_archive(own, archive, f"remove {own} to download it again")
        _unpack(own, archive, target)
        return
    by_hand = (
        f"download {archive.url} on another machine and put it at {own}, or use the images that come with whycam "
        "(the word 'bundled' in place of a path)"
    )
    have = part.stat().st_size if part.is_file() else 0
    _check_room(directory, archive.size - have + len(archive.files) * archive.file_size)
    transfer = Transfer(archive.url, part, archive.size, by_hand, progress, patience)
    transfer.run()
    if have and _sha256(part) != archive.sha256:
        # What was continued may have been begun with another file; once more, from the beginning.
        discard(part)
        transfer.run()
    if progress is not None:
        progress(archive.size, archive.size)
    try:
        _verify_archive(part, archive, by_hand, called=archive.url)
    except WhycamError:
        discard(part)
        raise
    _unpack(part, archive, target)
    discard(part)


def _unpack(packed: Path, archive: Archive, target: Path) -> None:
    """Unpack beside the target, verify, and move into place in one step."""
    temporary = target.with_name(f".{archive.folder}.unpacking")
    _remove(temporary)  # left by a kill
    temporary.mkdir()
    try:
        missing = set(archive.files)
        for member in members(packed):
            inside, size = member.inside, member.size
            if str(inside.parent) != archive.folder or inside.name not in {*archive.files, *archive.extras}:
                raise WhycamError(f"{packed} holds {str(inside)!r}, which does not belong there: it was not unpacked")
            expected = archive.files.get(inside.name)
            if size > _MAX_EXTRA if expected is None else size != archive.file_size:
                raise WhycamError(f"{packed}: {inside} has {size:,} bytes, which is wrong: it was not unpacked")
            digest = _write(member, temporary / inside.name)
            if expected is not None and digest != expected:
                raise WhycamError(f"{packed}: {inside} has the SHA-256 {digest} instead of {expected}")
            missing.discard(inside.name)
        if missing:
            raise WhycamError(f"{packed} lacks {', '.join(sorted(missing))}: it was not unpacked")
        _sync_folder(temporary)
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        _remove(temporary)


def _write(content: Member, path: Path) -> str:
    """Copy to a new file and on to the disk; returns the SHA-256."""
    state = hashlib.sha256()
    try:
        with path.open("xb") as out:
            while chunk := content.read(_CHUNK):
                state.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise disk_error(path, error) from error
    return state.hexdigest()


def _verify_folder(folder: Path, archive: Archive) -> None:
    """A folder under the final name is whole, or something else that must not be touched."""
    for name, expected in archive.files.items():
        file = folder / name
        if not file.is_file():
            problem = f"has no {name}"
        elif file.stat().st_size != archive.file_size:
            problem = f"has a {name} of {file.stat().st_size:,} bytes instead of {archive.file_size:,}"
        elif _sha256(file) != expected:
            problem = f"has a {name} with a wrong SHA-256"
        else:
            continue
        raise WhycamError(f"{folder} exists but {problem}: move it away, or choose another directory")


def _verify_archive(path: Path, archive: Archive, way_out: str, called: str | None = None) -> None:
    if path.stat().st_size != archive.size:
        raise WhycamError(
            f"{called or path} has {path.stat().st_size:,} bytes instead of {archive.size:,}: it is truncated or "
            f"another file; {way_out}"
        )
    if (digest := _sha256(path)) != archive.sha256:
        raise WhycamError(
            f"{called or path} has the SHA-256 {digest} instead of {archive.sha256}: it is damaged or another file; "
            f"{way_out}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise WhycamError(
            f"{directory} has {free / 1e6:,.0f} MB free, CIFAR-10 needs {needed / 1e6:,.0f} MB while it is unpacked: "
            "make room, or choose another directory"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second download out of the directory; the system lets go of the lock of a killed process."""
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


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _sync_folder(folder: Path) -> None:
    """Make names durable, where the system lets a folder be opened."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
