"""Write files atomically: a file is complete or does not exist."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whycam.errors import NoSpaceError, WhycamError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; on success it replaces ``path``, else nothing remains.

    Raises:
        WhycamError: the disk is full or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk, if the system allows opening a folder for that."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support this; the file itself is written.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while ``path`` is written into one sentence."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "permission denied; choose another folder",
            errno.EPERM: "permission denied; choose another folder",
            errno.ENOTDIR: "part of the path is a file, not a folder; choose another folder",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else WhycamError
        raise kind(f"{path}: cannot be written: {reason}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically: ``path`` is either unchanged or complete."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
