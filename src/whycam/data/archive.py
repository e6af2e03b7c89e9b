"""Read a .tar.gz as a stream with bounded memory, and refuse members outside the target folder."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from whycam.errors import WhycamError

MAX_UNPACKED = 256 * 2**20
"""Most bytes an archive may unpack to; CIFAR-10 unpacks to 186 MB."""


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a .tar.gz for ``regular_files``; afterwards it is read to its end, where its checksum is.

    Raises:
        WhycamError: the file is truncated, damaged, no .tar.gz, or unpacks to more than ``MAX_UNPACKED`` bytes.
        OSError: it cannot be read.
    """
    try:
        with gzip.open(path) as unpacked:
            bounded = _Bounded(unpacked, path)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
                yield tar
            while bounded.read(2**16):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WhycamError(
            f"{path} is truncated or damaged, or no .tar.gz archive ({error}): download it again"
        ) from error


def regular_files(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of an open archive, each to be read or extracted before the next one is asked for.

    ``tarfile.data_filter`` alone would rename absolute members and allow links.

    Args:
        tar: from ``open_archive``.
        path: what error messages call it.

    Raises:
        WhycamError: a member is absolute, climbs with ``..``, or is a link or a device.
    """
    for member in tar:
        inside = PurePosixPath(member.name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in member.name or ":" in member.name:
            raise WhycamError(f"{path} has a member that would escape its folder ({member.name!r}): do not trust it")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise WhycamError(f"{path} has a member that is no plain file ({member.name!r}): do not trust it")
        if member.isreg():
            yield member


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
