"""A queue with one worker thread. Work stops, or never starts, once its client has disconnected."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from whycam.app.limits import Limits, busy, unavailable

T = TypeVar("T")


class WorkCancelledError(Exception):
    """The result of this work is no longer wanted."""


class CancelToken:
    """Tells a worker thread that the result of its work is no longer wanted."""

    def __init__(self) -> None:
        self._canceled = threading.Event()

    def cancel(self) -> None:
        """Make every later `check` fail."""
        self._canceled.set()

    def check(self) -> None:
        """Do nothing, unless the token was canceled. Long work should call this often.

        Raises:
            WorkCancelledError: the token was canceled.
        """
        if self._canceled.is_set():
            raise WorkCancelledError


class WorkQueue:
    """Runs one piece of work at a time, in the order of arrival.

    More threads would not help: a single image already uses all cores, or the GPU.
    """

    def __init__(self, limits: Limits) -> None:
        self._free = asyncio.Semaphore(limits.queue_size)
        self._seconds = limits.work_seconds
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="whycam-worker")
        self._closing = asyncio.Event()

    async def run(self, work: Callable[[CancelToken], T], disconnected: Callable[[], Awaitable[None]]) -> T:
        """Run ``work`` in the worker thread when its turn comes.

        Args:
            work: should check its token often.
            disconnected: returns when the client has disconnected.

        Raises:
            HTTPException: 503: the queue is full, the work takes too long or the server is shutting down.
            ClientDisconnect: the client has disconnected.
        """
        if self._closing.is_set():
            raise _shutting_down()
        if self._free.locked():
            raise busy()
        async with self._free:
            token = CancelToken()
            job = asyncio.get_running_loop().run_in_executor(self._worker, _start, work, token)
            gone = asyncio.ensure_future(disconnected())
            closing = asyncio.ensure_future(self._closing.wait())
            futures: tuple[asyncio.Future[Any], ...] = (job, gone, closing)
            try:
                await asyncio.wait(futures, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if job.done():
                    return job.result()
                if closing.done():
                    raise _shutting_down()
                if gone.done():
                    raise ClientDisconnect
                raise unavailable(f"this takes longer than {self._seconds:g} seconds: choose fewer layers")
            finally:
                # Running work ends at its next check; waiting work never starts.
                token.cancel()
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """Stop all work and refuse any more."""
        self._closing.set()
        self._worker.shutdown(wait=False)


def _start(work: Callable[[CancelToken], T], token: CancelToken) -> T:
    token.check()
    return work(token)


def _shutting_down() -> Exception:
    return unavailable("the server is shutting down")
