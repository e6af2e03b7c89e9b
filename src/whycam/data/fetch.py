"""Download one file over HTTP, verify its SHA-256, and retry after temporary failures."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from whycam._version import __version__
from whycam.errors import WhycamError, missing_extra

DownloadProgress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""

_CHUNK = 2**16
_SLOWEST = 512  # bytes per second; a slower connection counts as stalled
_TRANSIENT_STATUS = frozenset({408, 425, 429})  # client errors (4xx) that may be over at the next attempt
_HEADERS = {
    "User-Agent": f"whycam/{__version__}",
    "Accept-Encoding": "identity",  # a compressed answer would have another number of bytes
}


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up on a bad connection.

    Attributes:
        timeout: seconds without data, or with hardly any, after which a connection counts as stalled.
        attempts: failures in a row after which the download fails.
        pause: seconds to wait, doubled with each failure: 2, 4, 8 … times this, up to 30 seconds.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


class _TransientError(Exception):
    """An attempt failed in a way that the next one may not."""


class _UnreachableError(_TransientError):
    """There was no connection at all."""


@dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        url: http or https.
        size: bytes that the file has; a server that offers another number is refused.
        sha256: of the file, hex.
        by_hand: what to do without a network, as the end of an error sentence.
        progress: called with (bytes so far, ``size``); starts again from 0 with each attempt.
        retry: time limits and attempts.
    """

    url: str
    size: int
    sha256: str
    by_hand: str
    progress: DownloadProgress | None = None
    retry: RetryPolicy = RetryPolicy()

    def save(self, path: Path) -> None:
        """Download to ``path``, which appears only when it is complete and verified.

        Raises:
            WhycamError: no connection, a refusal, another size or checksum, or too many failures.
            OSError: the disk does not take it.
        """
        if not self.url.startswith(("http://", "https://")):
            raise self._bad_address()
        # pooch's own retries would also repeat a 404, a wrong size and a wrong checksum.
        for attempt in range(1, self.retry.attempts + 1):
            try:
                self._attempt(path)
            except _TransientError as error:
                if attempt == 1 and isinstance(error, _UnreachableError):
                    raise WhycamError(f"{self.url} cannot be reached ({error}): {self.by_hand}") from error
                if attempt == self.retry.attempts:
                    raise WhycamError(
                        f"{self.url} failed {attempt} times in a row ({error}): run the same again later, "
                        f"or {self.by_hand}"
                    ) from error
                time.sleep(min(30.0, self.retry.pause * 2**attempt))
            else:
                return

    def _attempt(self, path: Path) -> None:
        try:
            import pooch
        except ImportError:
            raise missing_extra("pooch", "study", "downloading CIFAR-10") from None
        pooch.get_logger().setLevel("WARNING")  # it would announce each download on standard error
        try:
            pooch.retrieve(self.url, f"sha256:{self.sha256}", path.name, path.parent, downloader=self._receive)
        except ValueError as error:
            mismatch = str(error).split(". ")[0]
            raise WhycamError(f"{self.url} is damaged or another file ({mismatch}): {self.by_hand}") from error

    def _receive(self, _url: str, output_file: str, _pooch: object) -> None:
        """Make one attempt; has the signature of pooch's downloaders.

        pooch's HTTPDownloader would wait for ever for a server that sends a byte now and then, and would write
        whatever comes, however long.
        """
        with self._connect() as response:
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) != self.size:
                raise self._wrong_size(f"{int(length):,}")
            with Path(output_file).open("wb") as out:
                self._copy(response, out)

    def _connect(self) -> http.client.HTTPResponse:
        try:
            request = urllib.request.Request(self.url, headers=_HEADERS)
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.retry.timeout)
            return response
        except urllib.error.HTTPError as error:
            error.close()
            answer = f"{error.code} {error.reason}"
            if error.code in _TRANSIENT_STATUS or error.code >= 500:
                raise _TransientError(answer) from error
            raise WhycamError(f"{self.url} answers {answer}: give another address, or {self.by_hand}") from error
        except urllib.error.URLError as error:
            raise _UnreachableError(getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise self._bad_address() from error
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(_reason(error)) from error

    def _copy(self, response: http.client.HTTPResponse, out: BinaryIO) -> None:
        done = done_before = 0
        since = time.monotonic()
        while True:
            if self.progress is not None:
                self.progress(done, self.size)
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _TransientError(_reason(error)) from error
            if not chunk:
                break
            done += len(chunk)
            if done > self.size:
                raise self._wrong_size(f"more than {self.size:,}")
            out.write(chunk)
            if time.monotonic() - since > self.retry.timeout:
                if done - done_before < _SLOWEST * self.retry.timeout:
                    raise _TransientError("the connection stalled")
                since, done_before = time.monotonic(), done
        if done < self.size:
            raise _TransientError(f"the connection ended after {done:,} bytes")

    def _bad_address(self) -> WhycamError:
        return WhycamError(f"{self.url} is no http or https address: give one, or {self.by_hand}")

    def _wrong_size(self, offered: str) -> WhycamError:
        return WhycamError(
            f"{self.url} sends {offered} bytes, but the file has {self.size:,}: it is another file; "
            f"give another address, or {self.by_hand}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the connection stalled"
    return str(error) or type(error).__name__
