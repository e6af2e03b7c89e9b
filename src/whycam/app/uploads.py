"""Read request bodies within limits: on the size of one, on the number and size of all, and on time.

Starlette's own body limit answers while the client is still sending, and the browser then shows a network error
instead of the answer.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request

from whycam.app.limits import Limits, busy


class UploadReader:
    """Reads the bodies of requests; see `Limits` for the bounds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.uploads)
        self._held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts toward the limits until the block ends.

        Raises:
            HTTPException: 408: too slow; 413: too large; 503: too many uploads at once.
            starlette.requests.ClientDisconnect: the client has disconnected.
        """
        if self._free.locked():
            raise busy()
        buffer, pieces = io.BytesIO(), request.stream()
        async with self._free:
            try:
                # The HTTP parser has already checked that the header is a number.
                declared = int(request.headers.get("content-length", 0))
                if declared > self._limits.file_bytes or not await self._fill(buffer, pieces):
                    await self._discard(pieces)
                    size = self._limits.file_bytes / 2**20
                    raise HTTPException(413, f"the file is larger than {size:g} MiB: shrink the image")
                yield buffer.getvalue()
            finally:
                self._held_bytes -= buffer.tell()

    async def _fill(self, buffer: io.BytesIO, pieces: AsyncIterator[bytes]) -> bool:
        """Read the body into ``buffer``; False as soon as it turns out too large."""
        seconds = self._limits.upload_seconds
        try:
            async with asyncio.timeout(seconds):
                async for piece in pieces:
                    if buffer.tell() + len(piece) > self._limits.file_bytes:
                        return False
                    if self._held_bytes + len(piece) > self._limits.total_bytes:
                        raise busy()
                    self._held_bytes += buffer.write(piece)
        except TimeoutError:
            raise HTTPException(408, f"the image did not arrive within {seconds:g} seconds") from None
        return True

    async def _discard(self, pieces: AsyncIterator[bytes]) -> None:
        """Read on for a while: a client that is still sending when the connection closes never sees the answer."""
        rest = 4 * self._limits.file_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(min(5.0, self._limits.upload_seconds)):
                async for piece in pieces:
                    rest -= len(piece)
                    if rest < 0:
                        return


async def client_disconnect(request: Request) -> None:
    """Return when the client has disconnected; only for use after the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
