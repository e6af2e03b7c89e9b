"""A real server process, and a client for it."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

import whycam


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Served:
    """A running server."""

    def __init__(self, arguments: Sequence[str]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.pages = json.loads(line)
        self.url = self.pages["url"]
        parts = urlsplit(self.url)
        self.host, self.port = parts.hostname, parts.port
        self.sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.sockets.append(socket.create_connection((self.host, self.port), timeout=60))
        return self.sockets[-1]

    def ask(self, method="GET", path="/", body=None, headers=None, timeout=60) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def explain(self, body, query="layer=layer4%5B-1%5D", **options) -> Answer:
        return self.ask("POST", f"/explain?{query}", body=body, **options)

    def raw(self, request: bytes) -> bytes:
        """Send exactly these bytes and return the whole answer."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def peak_mib(self) -> float:
        """The process's largest resident size so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise AssertionError

    def stop(self, how=signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit status, and the rest of its output and errors."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def photo_bytes() -> bytes:
    """A PNG that is larger than the network's input, and not square."""
    pixels = whycam.open_source("bundled").read([3])[0].permute(1, 2, 0).numpy()
    return encoded(np.asarray(Image.fromarray(pixels).resize((160, 120))))


def encoded(pixels, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def request_head(served, path="/explain?layer=layer4[-1]", **fields):
    fields = {"Host": f"127.0.0.1:{served.port}", **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def becomes(expected: int, status, seconds: float = 10) -> bool:
    """Whether ``status()`` is as expected soon; a busy machine may notice late what clients did."""
    end = time.monotonic() + seconds
    while status() != expected:
        if time.monotonic() > end:
            return False
    return True
