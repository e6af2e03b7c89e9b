"""The names of splits, as folders and files spell them."""

from __future__ import annotations

from collections.abc import Collection

from whycam.errors import WhycamError

_SPELLINGS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


def split_of_name(name: str) -> str | None:
    """The split that a folder or file name stands for, or None."""
    return _SPELLINGS.get(name.lower())


def choose_split(requested: str, present: Collection[str], where: str) -> str:
    """The split to read: the one asked for, or "val" in place of a "test" that does not exist.

    Raises:
        WhycamError: there is no such split; the sentence lists those there are.
    """
    if requested in present:
        return requested
    if requested == "test" and "val" in present:
        return "val"
    there = " and ".join(sorted(present)) if present else "none"
    raise WhycamError(f"{where} has no split {requested!r}; there is {there}")


def split_of_undivided_data(requested: str, name: str, where: str) -> str:
    """The split that data without splits passes for: its own name's if asked for, else "all" for "test" and "all".

    Raises:
        WhycamError: another split is asked for.
    """
    if requested == split_of_name(name):
        return requested
    if requested in ("test", "all"):
        return "all"
    raise WhycamError(f"{where} has no split {requested!r}: its images are not divided (ask for 'test' or 'all')")
