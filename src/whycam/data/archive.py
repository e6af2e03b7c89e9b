"""Reading a .tar.gz member by member: nothing touches the disk, memory is bounded, no member may escape."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from whycam.errors import WhycamError

MAX_UNPACKED = 256 * 2**20
"""Most bytes an archive may unpack to; CIFAR-10 unpacks to 186 MB."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive, which can be read until the next one is asked for.

    Attributes:
        inside: its path in the archive.
        size: bytes.
    """

    inside: PurePosixPath
    size: int
    _content: IO[bytes]
    _path: Path

    def read(self, size: int = -1) -> bytes:
        """Read on, at most ``size`` bytes; raises ``WhycamError`` where the archive ends or is damaged."""
        with _explained(self._path):
            return self._content.read(size)


def members(path: Path) -> Iterator[Member]:
    """Walk through the regular files of a .tar.gz, in the order of the archive, to its very end.

    Raises:
        WhycamError: the file is truncated, damaged, no .tar.gz, unpacks to more than ``MAX_UNPACKED`` bytes, or
            holds a member that is absolute, climbs with ``..``, or is a link or a device.
    """
    with _explained(path), gzip.open(path) as unpacked:
        bounded = _Bounded(unpacked, path)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                inside = _safe(member, path)
                if not member.isdir():
                    content = tar.extractfile(member)
                    assert content is not None, "a regular member has content"
                    yield Member(inside, member.size, content, path)
            while bounded.read(2**16):  # the checksum is at the end
                pass


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WhycamError(
            f"{path} is truncated or damaged, or no .tar.gz archive ({error}): download it again"
        ) from error
    except OSError as error:
        raise WhycamError(f"{path} cannot be read ({error.strerror or error}): check the path") from error


class _Bounded:
    """A stream that refuses to deliver without end: neither contents nor tar headers can exhaust memory."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = MAX_UNPACKED

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise WhycamError(
                f"{self._path} unpacks to more than {MAX_UNPACKED:,} bytes, which CIFAR-10 does not: "
                "download the official archive"
            )
        return chunk


def _safe(member: tarfile.TarInfo, path: Path) -> PurePosixPath:
    inside = PurePosixPath(member.name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in member.name or ":" in member.name:
        raise WhycamError(f"{path} has a member that would escape its folder ({member.name!r}): do not trust it")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise WhycamError(f"{path} has a member that is no plain file ({member.name!r}): do not trust it")
    return inside
