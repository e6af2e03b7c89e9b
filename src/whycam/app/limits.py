"""How much of everything the server takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that keep the server's memory and patience finite, whoever asks.

    Attributes:
        file_bytes: the largest file.
        total_bytes: what all uploads in progress or waiting may hold together.
        uploads: how many may be in progress or waiting.
        places: how many may wait for the network or be served by it.
        upload_seconds: how long a client may take to send a file.
        work_seconds: how long one explanation may take, waiting included.
        connections: open at a time.
        head_seconds: how long a connection may take to bring a request.
        grace_seconds: how long answers on their way may take once the server is told to stop.
    """

    file_bytes: int = 8 * 2**20
    total_bytes: int = 64 * 2**20
    uploads: int = 128
    places: int = 32
    upload_seconds: float = 30.0
    work_seconds: float = 120.0
    connections: int = 512
    head_seconds: float = 15.0
    grace_seconds: int = 3
