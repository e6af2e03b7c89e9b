"""The server process: malformed requests, silent clients, shutdown."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from served import read_all, request_head, status_of


def test_malformed_requests_are_refused(server):
    for request in (b"\0\1\2\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000,
                    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                    b"POST /explain HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):  # fmt: skip
        try:
            response = server.raw(request)
        except ConnectionError:  # hung up on
            continue
        assert not response or status_of(response) in (400, 421, 431)
    assert server.ask(path="/health").status == 200


def test_silent_clients_are_disconnected(limited, photo):
    """Clients that send nothing, half a head or half a body time out, and do not keep others from being served."""
    silent = [limited.connect() for _ in range(20)]
    halves = [limited.connect() for _ in range(20)]
    for connection in halves:
        connection.sendall(b"GET / HT")
    bodies = [limited.connect() for _ in range(8)]
    for connection in bodies:
        connection.sendall(request_head(limited, Content_Length="1000") + b"\x89PNG")
    assert limited.explain(photo).status == 200
    for connection in silent + halves:
        assert read_all(connection) == b""
        connection.close()
    for connection in bodies:
        assert status_of(read_all(connection)) == 408
        connection.close()
    assert limited.ask(path="/health").status == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stops_on_signals_while_busy(how, limited, photo):
    hanging = limited.connect()
    hanging.sendall(b"GET / HT")
    working = limited.connect()
    working.sendall(request_head(limited, Content_Length=str(len(photo))) + photo)
    while not limited.log.exists():
        time.sleep(0.01)
    status, _, err = limited.stop(how)
    assert (status, err) == (0, "")
    answer = read_all(working)
    assert status_of(answer) == 503
    assert b"shutting down" in answer
    assert limited.log.read_text().split() == ["begin"]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((limited.host, limited.port))
    hanging.close()
    working.close()
