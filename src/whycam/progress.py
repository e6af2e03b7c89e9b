"""The type of the callbacks that report progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def quiet(_stage: str, _done: int, _total: int) -> None:
    """Report no progress."""
