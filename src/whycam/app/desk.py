"""Work one piece at a time, with a short line before it, in which nobody stands who has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from whycam.app.intake import Refusal, busy

T = TypeVar("T")


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


class Ticket:
    """Tells work in progress whether somebody still waits for it."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def leave(self) -> None:
        """Say that nobody waits."""
        self._gone.set()

    def check(self) -> None:
        """To be called often while working.

        Raises:
            AbandonedError: nobody waits.
        """
        if self._gone.is_set():
            raise AbandonedError


class Desk:
    """One worker thread: the network uses all cores (or the one GPU) for a single image already.

    Args:
        places: how many may wait or be served at once.
        seconds: after which work is given up.
    """

    def __init__(self, *, places: int, seconds: float) -> None:
        self._places = places
        self._seconds = seconds
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="whycam-desk")
        self._tickets: set[Ticket] = set()
        self._turn = asyncio.Lock()
        self._closed = False

    async def serve(self, work: Callable[[Ticket], T], gone: Callable[[], Awaitable[None]]) -> T:
        """Do ``work`` when its turn comes.

        Args:
            work: runs in the worker thread; should check its ticket often.
            gone: returns when the client has left.

        Raises:
            Refusal: the line is full, the work takes too long or the server is closing.
            AbandonedError: the client has left.
        """
        if self._closed:
            raise Refusal(503, "the server is shutting down", retry_after=5)
        if len(self._tickets) >= self._places:
            raise busy()
        ticket = Ticket()
        self._tickets.add(ticket)
        job = asyncio.ensure_future(self._when_free(work, ticket))
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({job, leaving}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            if leaving.done():
                raise AbandonedError
            raise Refusal(503, f"this takes longer than {self._seconds:g} seconds: choose fewer layers", retry_after=5)
        except AbandonedError:
            if self._closed:
                raise Refusal(503, "the server is shutting down", retry_after=5) from None
            raise
        finally:
            # Work that has begun ends at its next check; work that has not never begins.
            ticket.leave()
            self._tickets.discard(ticket)
            job.cancel()
            leaving.cancel()

    async def _when_free(self, work: Callable[[Ticket], T], ticket: Ticket) -> T:
        async with self._turn:
            ticket.check()
            return await asyncio.get_running_loop().run_in_executor(self._worker, work, ticket)

    def close(self) -> None:
        """Give up all work, also what is in progress."""
        self._closed = True
        for ticket in self._tickets:
            ticket.leave()
        self._worker.shutdown(wait=False, cancel_futures=True)
