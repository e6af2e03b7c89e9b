"""One file over HTTP, resumed as often as it takes within bounds; it is verified elsewhere."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from whycam._version import __version__
from whycam.errors import WhycamError

Progress = Callable[[int, int], None]

_CHUNK = 2**16
_SLOWEST = 512  # bytes per second; less than that is a stall
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)$")
_PASSING = frozenset({408, 425, 429})  # client errors (4xx) that may be over at the next attempt


@dataclass(frozen=True)
class Patience:
    """How long to put up with a bad connection.

    Attributes:
        timeout: seconds without data, or with hardly any, after which a connection counts as stalled.
        attempts: consecutive failures without a hundredth of the file gained, after which the download fails.
        pause: seconds to wait after the first failure; doubled after each further one, up to 30.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


@dataclass(frozen=True)
class _Origin:
    """Where a partial file comes from; kept beside it, so that it is not continued with another file's bytes."""

    url: str
    validator: str | None


class _BrokenError(Exception):
    """An attempt failed in a way that the next one may not."""


@dataclass(frozen=True)
class Transfer:
    """What to download, and where to.

    Attributes:
        url: http or https.
        part: the partial file; a JSON file beside it remembers the server's version of the file.
        size: bytes that the file has; a server that offers another number is refused.
        by_hand: what to do without a network, as the end of an error sentence.
        progress: called with (bytes so far, ``size``).
        patience: time limits and attempts.
    """

    url: str
    part: Path
    size: int
    by_hand: str
    progress: Progress | None = None
    patience: Patience = Patience()

    def run(self) -> None:
        """Download, continuing what is there already; ``part`` then has ``size`` bytes.

        Raises:
            WhycamError: no connection, a refusal, another size, too many failures, or no room on the disk.
        """
        if not self.url.startswith(("http://", "https://")):
            raise WhycamError(f"{self.url} is no http or https address: give one, or {self.by_hand}")
        if self._done > self.size:
            discard(self.part)
        furthest, failures, connected = self._done, 0, False
        while self._done < self.size:
            try:
                with self._connect(first=not connected) as response:
                    connected = True
                    self._receive(response)
            except _BrokenError as broken:
                connected = True
                gained = self._done - furthest
                furthest = max(furthest, self._done)
                failures = 0 if gained > self.size // 100 else failures + 1
                if failures >= self.patience.attempts:
                    raise WhycamError(
                        f"{self.url} failed {failures} times in a row ({broken}); {self._done:,} of {self.size:,} "
                        f"bytes are kept: run the same again to continue, or {self.by_hand}"
                    ) from broken
                time.sleep(min(30.0, self.patience.pause * 2**failures))

    @property
    def _done(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def _origin(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def _connect(self, *, first: bool) -> http.client.HTTPResponse:
        """Ask for the rest of the file; only of the unchanged file where the server's version of it is known."""
        # Any other encoding would make the numbers of bytes mean something else.
        headers = {"User-Agent": f"whycam/{__version__}", "Accept-Encoding": "identity"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
            known = _read_origin(self._origin)
            if known is not None and known.url == self.url and known.validator is not None:
                headers["If-Range"] = known.validator
        try:
            request = urllib.request.Request(self.url, headers=headers)
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.patience.timeout)
            return response
        except urllib.error.HTTPError as error:
            error.close()
            answer = f"{error.code} {error.reason}"
            if error.code == 416:  # the range lies outside the server's file: begin again
                discard(self.part)
                raise _BrokenError(answer) from error
            if error.code in _PASSING or error.code >= 500:
                raise _BrokenError(answer) from error
            raise WhycamError(f"{self.url} answers {answer}: give another address, or {self.by_hand}") from error
        except urllib.error.URLError as error:
            reason = getattr(error.reason, "strerror", None) or str(error.reason)
            if not first:
                raise _BrokenError(reason) from error
            raise WhycamError(f"{self.url} cannot be reached ({reason}): {self.by_hand}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error

    def _receive(self, response: http.client.HTTPResponse) -> None:
        """Write the body of a response to its place in the partial file."""
        start = 0
        if response.status == 206:
            start = self._done
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != start or match[2] not in (str(self.size), "*"):
                discard(self.part)
                raise _BrokenError("the server sent another part of the file than the one asked for")
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and start + int(length) != self.size:
            raise self._wrong_size(f"{start + int(length):,}")
        try:
            if not start:
                _write_origin(self._origin, _Origin(self.url, _validator(response)))
            out = self.part.open("ab" if start else "wb")
        except OSError as error:
            raise disk_error(self.part, error) from error
        with out:
            self._copy(response, out, start)

    def _copy(self, response: http.client.HTTPResponse, out: BinaryIO, done: int) -> None:
        since, seen = time.monotonic(), done
        while True:
            if self.progress is not None:
                self.progress(done, self.size)
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_reason(error)) from error
            if not chunk:
                break
            done += len(chunk)
            if done > self.size:
                discard(self.part)
                raise self._wrong_size(f"more than {self.size:,}")
            try:
                out.write(chunk)
                out.flush()
            except OSError as error:
                raise disk_error(self.part, error) from error
            if time.monotonic() - since > self.patience.timeout:
                if done - seen < _SLOWEST * self.patience.timeout:
                    raise _BrokenError("the connection stalled")
                since, seen = time.monotonic(), done
        if done < self.size:
            raise _BrokenError(f"the connection ended after {done:,} bytes")

    def _wrong_size(self, offered: str) -> WhycamError:
        return WhycamError(
            f"{self.url} sends {offered} bytes, but the file has {self.size:,}: it is another file; "
            f"give another address, or {self.by_hand}"
        )


def discard(part: Path) -> None:
    """Remove a partial file and what is remembered of it."""
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> WhycamError:
    """One sentence for a failed write: full, read-only, forbidden."""
    return WhycamError(f"{path} cannot be written ({error.strerror}): make room, or choose another directory")


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What If-Range accepts: a strong ETag, else the date (RFC 9110, section 13.1.5)."""
    etag: str | None = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    date: str | None = response.headers.get("Last-Modified")
    return date


def _write_origin(path: Path, origin: _Origin) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(asdict(origin)), encoding="utf-8")
    temporary.replace(path)


def _read_origin(path: Path) -> _Origin | None:
    try:
        return _Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # without it, a changed file shows in the checksum at the end


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the connection stalled"
    return str(error) or type(error).__name__
