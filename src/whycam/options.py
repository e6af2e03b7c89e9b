"""Options of methods and combinators: their names, types and ranges, all read from the function's own signature.

A keyword parameter is an option. Where it is annotated with numbers, strings, booleans, ``None`` or ``Literal``, or has
a default of such a type and no annotation, nothing else is let in. A range is part of the type: ``n: Count = 4``.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from whycam.errors import WhycamError


@dataclass(frozen=True)
class Range:
    """What a number may be, put behind its type: ``Annotated[int, Range(1)]``.

    Attributes:
        low: the smallest.
        high: the largest.
        without_low: ``low`` itself is none of them.
    """

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.without_low and value == self.low)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"from {self.low:g} to {self.high:g}"
        return f"of more than {self.low:g}" if self.without_low else f"of at least {self.low:g}"


Count = Annotated[int, Range(1)]
"""How many of something there are, or happen at once."""
Share = Annotated[float, Range(0, 1)]
Deviation = Annotated[float, Range(0)]
"""A standard deviation; 0 for none at all."""

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", NoneType: "None"}


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options of a method's function or of a combinator, with their defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def checked(title: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, if ``function`` has them and takes such values; numpy's numbers become Python's.

    Args:
        title: what the user knows the function as.
        function: its first parameter is no option.
        options: by name.

    Raises:
        WhycamError: there is no such option, or it is of another type or out of range.
    """
    known = options_of(function)
    for name in options:
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise WhycamError(f"{title} has no option {name!r}; {has}")
    annotations = _annotations(function)
    result = {}
    for name, value in options.items():
        allowed = _allowed(annotations.get(name, _type_of(known[name])))
        result[name] = plain = _plain(value)
        if allowed and not any(kind.takes(plain) for kind in allowed):
            raise WhycamError(
                f"option {name} of {title} is {' or '.join(map(str, allowed))}, not {reprlib.repr(value)}"
            )
    return result


@dataclass(frozen=True)
class _Kind:
    """One of the types that an option may have, within a range or of certain values."""

    type: type
    within: Range | None = None
    values: tuple[Any, ...] = ()

    def takes(self, value: object) -> bool:
        if self.values:
            return any(type(value) is type(one) and value == one for one in self.values)
        # A whole number is a number, infinity none; neither is True.
        fits = type(value) is self.type or (self.type is float and type(value) is int)
        fits = fits and not (isinstance(value, float) and not math.isfinite(value))
        # Only numbers have a range, and this is one by now, which the type checker cannot know.
        return fits and (self.within is None or value in self.within)  # type: ignore[operator]

    def __str__(self) -> str:
        if self.values:
            return " or ".join(map(repr, self.values))
        return _WORDS[self.type] + (f" {self.within}" if self.within else "")


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except Exception:  # names that exist for the type checker alone: the defaults have to do
        return {}
    return {known.name: known.annotation for known in parameters if known.annotation is not known.empty}


def _type_of(default: Any) -> Any:
    return type(default) if type(default) in (int, float, str, bool) else Any


def _allowed(annotation: Any) -> tuple[_Kind, ...]:
    """The kinds that an annotation lets in; none where it is not for us to judge."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *more = get_args(annotation)
        within = next((entry for entry in more if isinstance(entry, Range)), None)
        return tuple(_Kind(kind.type, within, kind.values) for kind in _allowed(base))
    if origin in (Union, UnionType):
        members = [_allowed(member) for member in get_args(annotation)]
        return tuple(kind for member in members for kind in member) if all(members) else ()
    if origin is Literal:
        return (_Kind(object, values=get_args(annotation)),)
    return (_Kind(annotation),) if isinstance(annotation, type) and annotation in _WORDS else ()
