"""One piece of work at a time; none for clients that have disconnected."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from served import request_head
from starlette.exceptions import HTTPException

from whycam.app.limits import Limits
from whycam.app.work_queue import WorkQueue


def test_work_stops_when_the_client_disconnects(limited, photo):
    """Running work stops between two layers; waiting work never starts."""
    request = request_head(limited, Content_Length=str(len(photo))) + photo
    first = limited.connect()
    first.sendall(request)
    while not limited.log.exists():
        time.sleep(0.01)
    waiting = [limited.connect() for _ in range(2)]
    for connection in waiting:
        connection.sendall(request)
    time.sleep(0.2)  # now one is running and the others are in the queue
    # Waiting clients leave first: if the first one left before them, one of them could rightly start.
    for connection in [*waiting, first]:
        connection.close()
    assert limited.explain(photo).status == 200
    assert limited.log.read_text().split() == ["begin", "begin", "end"]


def test_full_queue_answers_503(limited, photo):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: limited.explain(photo), range(10)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] * 4 + [503] * 6
    assert all("busy" in answer.json["error"] for answer in answers if answer.status == 503)


async def stay():
    """A client that does not disconnect."""
    await asyncio.Event().wait()


def test_work_runs_one_at_a_time_in_order():
    running, started, most = [], [], 0

    def work(number, _token):
        nonlocal most
        started.append(number)
        running.append(number)
        most = max(most, len(running))
        time.sleep(0.02)
        running.remove(number)
        return number

    async def run_all():
        queue = WorkQueue(Limits())
        results = await asyncio.gather(*(queue.run(partial(work, number), stay) for number in range(8)))
        queue.close()
        with pytest.raises(HTTPException, match="shutting down"):
            await queue.run(partial(work, 8), stay)
        return results

    assert asyncio.run(run_all()) == started == list(range(8))
    assert most == 1


def test_work_that_takes_too_long_is_canceled():
    ended = threading.Event()

    def work(token):
        try:
            while True:
                token.check()
        finally:
            ended.set()

    async def run():
        queue = WorkQueue(Limits(work_seconds=0.1))
        with pytest.raises(HTTPException, match=r"longer than 0.1 seconds"):
            await queue.run(work, stay)
        assert await queue.run(lambda _: "next", stay) == "next"
        queue.close()

    asyncio.run(run())
    assert ended.is_set()
