"""Limits on uploads: the size of one, and the number and memory of all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from served import becomes, encoded, read_all, request_head, status_of

from whycam.app.limits import Limits

LIMITS = Limits()


def test_declared_size_above_the_limit_is_refused(server):
    body = b"x" * (LIMITS.file_bytes + 1)
    answer = server.explain(body)
    assert answer.status == 413
    assert "larger than 8 MiB" in answer.json["error"]


def test_undeclared_size_above_the_limit_is_refused(server):
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    response = server.raw(request_head(server, Transfer_Encoding="chunked") + piece * 130 + b"0\r\n\r\n")
    assert status_of(response) == 413


def test_huge_declared_size_without_a_body_is_refused(server):
    with server.connect() as connection:
        connection.sendall(request_head(server, Content_Length="99999999999999999999"))
        assert status_of(read_all(connection)) == 413


def test_200_uploads_at_once_use_bounded_memory(server):
    """As many as fit are answered, the others are told when to try again, and memory stays bounded."""
    rng = np.random.default_rng(0)
    large = encoded(rng.integers(0, 255, (900, 900, 3), dtype=np.uint8))  # 2.4 MB each, 486 MB in all
    server.explain(large)
    before = server.peak_mib()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: server.explain(large, timeout=300), range(200)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 10
    for answer in answers:
        assert answer.status == 200 or int(answer.headers["retry-after"]) >= 1
    grown = server.peak_mib() - before
    assert grown < 3 * LIMITS.total_bytes / 2**20 + 64, grown
    assert server.explain(large).status == 200


def test_number_of_uploads_is_limited(limited, photo):
    def beside_twelve() -> int:
        open_uploads = [limited.connect() for _ in range(12)]
        for connection in open_uploads:
            connection.sendall(request_head(limited, Content_Length="1000") + b"x")
        status = limited.explain(photo).status
        for connection in open_uploads:
            connection.close()
        return status

    assert becomes(503, beside_twelve)
    assert becomes(200, lambda: limited.explain(photo).status)
