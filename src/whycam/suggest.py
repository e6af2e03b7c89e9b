"""Near misses for a mistyped name, as the end of an error sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_misses(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """A phrase such as `` (did you mean layer3.0 or layer3.1?)``, or all known names where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return f" (did you mean {_either(close)}?)"
    if 0 < len(names) <= 40:
        return f" (there {'is' if len(names) == 1 else 'are'} {', '.join(names)})"
    return ""


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
