"""Text or JSON values → typed dataclass fields, with one clear sentence where they do not fit."""

from __future__ import annotations

import json
import math
import types
import typing
from typing import Any, Literal

from whycam.errors import WhycamError


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Turn ``value`` into ``kind``: bool, int, float, str, a Literal, a tuple of these, or one of them or None.

    Text is read as a command line has it (``0.3``, ``true``, ``none``, ``[[0, 24], [0.7, 32]]``); lists become tuples.

    Raises:
        WhycamError: the value does not fit; the sentence begins with ``where``.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise WhycamError(f"{where} is {value!r}; it must be one of {', '.join(map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return coerce(value, next(option for option in arguments if option is not types.NoneType), where)
    if origin is tuple:
        return _tuple(value, arguments, where)
    if kind is str:
        if isinstance(value, str):
            return value
    elif kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
            return value.lower() in ("true", "yes", "on")
        if isinstance(value, bool):
            return value
    else:
        number = _number(value)
        if number is not None and (kind is float or number == int(number)):
            return kind(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise WhycamError(f"{where} is {value!r}; it must be {names[kind]}")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            value = None
    if isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            return tuple(coerce(part, arguments[0], where) for part in value)
        if len(value) == len(arguments):
            return tuple(coerce(part, part_kind, where) for part, part_kind in zip(value, arguments, strict=True))
    example = "[[0, 24], [0.7, 32]]" if arguments[-1] is Ellipsis else "[0.85, 0.95]"
    raise WhycamError(f"{where} is {value!r}; it must be a list, for example {example}")
