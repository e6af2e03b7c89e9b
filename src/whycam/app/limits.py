"""The server's limits, and the answer when one of them is reached."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException


@dataclass(frozen=True)
class Limits:
    """Bounds on memory, time and connections that hold for all clients together unless said otherwise.

    Attributes:
        file_bytes: largest size of one upload.
        total_bytes: what all uploads in progress or waiting may hold together.
        uploads: how many uploads may be in progress or waiting.
        queue_size: how many requests may wait for the model or be processed by it.
        upload_seconds: how long one client may take to send a file.
        work_seconds: how long one explanation may take, including its wait.
        connections: open at a time.
        head_seconds: how long a new connection may take to send a request's head.
        grace_seconds: how long the server waits for unfinished answers after it was told to stop.
    """

    file_bytes: int = 8 * 2**20
    total_bytes: int = 64 * 2**20
    uploads: int = 128
    queue_size: int = 32
    upload_seconds: float = 30.0
    work_seconds: float = 120.0
    connections: int = 512
    head_seconds: int = 15
    grace_seconds: int = 3


def unavailable(sentence: str, retry_after: int = 5) -> HTTPException:
    """An answer of 503 that asks the client to try again after that many seconds."""
    return HTTPException(503, sentence, {"Retry-After": str(retry_after)})


def busy() -> HTTPException:
    """The answer when there is no room for another upload or another request in the queue."""
    return unavailable("the server is busy; try again in a moment", retry_after=1)
