"""Public names that are imported on first use, and old ones that still work for one release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    module: str, homes: Mapping[str, str] | None = None, *, moved: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A module's ``__getattr__``.

    Args:
        module: the module's ``__name__``.
        homes: public name → the module that defines it.
        moved: old name → where it is now, ``"package.module:name"``. Each use of an old name is a `DeprecationWarning`.

    Returns:
        The function. It raises `AttributeError` for every other name.
    """

    def find(name: str) -> Any:
        if name in (homes or {}):
            return getattr(importlib.import_module((homes or {})[name]), name)
        if name not in (moved or {}):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = (moved or {})[name].partition(":")
        warnings.warn(
            f"{module}.{name} is now {home}.{new}; the old name will be removed in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(home), new)

    return find


def renamed_attribute(old: str, new: str) -> property:
    """A property for the old name of an attribute. Each use is a `DeprecationWarning`."""

    def get(owner: object) -> Any:
        warnings.warn(
            f"{type(owner).__name__}.{old} is now {new}; the old name will be removed in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(owner, new)

    return property(get)
