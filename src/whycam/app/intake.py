"""Request bodies, read within bounds: of one body, of all bodies together, of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request


class Refusal(Exception):  # noqa: N818 (it is an answer, not a fault)
    """An answer other than success.

    Attributes:
        status: the HTTP status.
        sentence: what to tell the client.
        retry_after: seconds after which trying again makes sense, or None.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after


def busy() -> Refusal:
    """The answer of a server that has enough to do."""
    return Refusal(503, "the server is busy; try again in a moment", retry_after=1)


class Intake:
    """Reads bodies while their number and their total size stay within bounds.

    Args:
        each: bytes one body may have.
        total: bytes that all bodies which are in use may have together.
        bodies: how many may be in use at once.
        seconds: how long a client may take to send one.
    """

    def __init__(self, *, each: int, total: int, bodies: int, seconds: float) -> None:
        self.each = each
        self._total = total
        self._bodies = bodies
        self._seconds = seconds
        self._held = 0
        self._open = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body; it counts as in use until the block ends.

        Raises:
            Refusal: it is too large, too slow or one too many.
            starlette.requests.ClientDisconnect: the client left.
        """
        if self._open >= self._bodies:
            raise busy()
        self._open += 1
        pieces: list[bytes] = []
        held = 0
        try:
            if _declared(request) > self.each:
                await self._discard(request)
                raise self._too_large()
            try:
                async with asyncio.timeout(self._seconds):
                    async for piece in request.stream():
                        if held + len(piece) > self.each:
                            pieces.clear()
                            await self._discard(request)
                            raise self._too_large()
                        if self._held + len(piece) > self._total:
                            raise busy()
                        pieces.append(piece)
                        held += len(piece)
                        self._held += len(piece)
            except TimeoutError:
                raise Refusal(408, f"the image did not arrive within {self._seconds:g} seconds") from None
            whole = b"".join(pieces)
            pieces.clear()
            yield whole
        finally:
            self._held -= held
            self._open -= 1

    async def _discard(self, request: Request) -> None:
        """Read on for a while: a client that is still sending when the connection closes never sees the answer."""
        rest = 4 * self.each
        try:
            async with asyncio.timeout(min(5.0, self._seconds)):
                while rest > 0:
                    message = await request.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    rest -= len(message.get("body", b""))
        except TimeoutError:
            return

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the file is larger than {self.each / 2**20:g} MiB: shrink the image")


def _declared(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


async def until_gone(request: Request) -> None:
    """Return when the client has left; only for use after the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
