"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total)."""


def quiet(_stage: str, _done: int, _total: int) -> None:
    """Progress that tells nobody."""
