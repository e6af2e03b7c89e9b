"""Options and settings: their types and ranges, read from annotations.

`checked` takes the options of methods and combinators: the keyword parameters of a function. `converted` takes the
fields of a dataclass, such as a recipe; their values may also be text from a command line or JSON. Both understand
numbers, strings, booleans, ``None``, ``Literal``, tuples of these, and unions; any other annotation allows every value.
A range is part of the type: ``n: Count = 4`` or ``epochs: Annotated[int, Range(1, 100)] = 20``.
"""

from __future__ import annotations

import inspect
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from types import EllipsisType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from whycam.errors import WhycamError, near_misses


@dataclass(frozen=True)
class Range:
    """The numbers that are allowed, written after the type: ``Annotated[int, Range(1)]``.

    Attributes:
        low: the smallest.
        high: the largest.
        without_low: ``low`` itself is not allowed.
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


@dataclass(frozen=True)
class Example:
    """A tuple to show in an error message: ``Annotated[tuple[float, float], Example("[0.1, 0.9]")]``."""

    text: str


Count = Annotated[int, Range(1)]
"""A number of things, or of repetitions: at least 1."""
Share = Annotated[float, Range(0, 1)]
"""A part of the whole, from 0 to 1."""
Deviation = Annotated[float, Range(0)]
"""A standard deviation; 0 means no spread."""

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
_WORDS |= {NoneType: "None", tuple: "a list"}
_CONSTANTS = {"none": None, "null": None} | dict.fromkeys(("true", "yes", "on"), True)
_CONSTANTS |= dict.fromkeys(("false", "no", "off"), False)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options of a method's function or of a combinator, with their defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def checked(title: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, if ``function`` has them and takes such values; numpy's numbers become Python's.

    Args:
        title: the name by which the user knows the function.
        function: its first parameter is not an option.
        options: by name.

    Raises:
        WhycamError: there is no such option, or its value has the wrong type or is out of range.
    """
    known = options_of(function)
    annotations = _annotations(function)
    result = {}
    for name, value in options.items():
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise WhycamError(f"{title} has no option {name!r}; {has}")
        kinds = _kinds(annotations.get(name, Any if known[name] is None else type(known[name])))
        result[name] = plain = _plain(value)
        # A list may stand for a tuple here: the function itself decides.
        judged = kinds and all(kind.type is not tuple for kind in kinds)
        if judged and not any(kind.takes(plain) for kind in kinds):
            raise WhycamError(f"option {name} of {title} is {' or '.join(map(str, kinds))}, not {reprlib.repr(value)}")
    return result


def converted(title: str, settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` in the types of a dataclass's fields.

    Text is read as a command line writes it (``0.3``, ``true``, ``none``, ``[[0, 24], [0.7, 32]]``); lists become
    tuples, and whole numbers become floats where the field is a float.

    Args:
        title: what the settings are; every error begins with it.
        settings: a dataclass whose annotations give the types and ranges.
        values: by field.

    Raises:
        WhycamError: there is no such field, or its value has the wrong type or is out of range.
    """
    fields = _fields(settings)
    for name in values:
        if name not in fields:
            raise WhycamError(f"{title}: there is no field {name!r}{near_misses(name, fields)}")
    return {name: _convert(value, fields[name], f"{title}: {name}") for name, value in values.items()}


@dataclass(frozen=True)
class _Kind:
    """One of the types that a value may have; ``object`` for a ``Literal``, whose ``values`` say all."""

    type: type
    within: Range | None = None
    values: tuple[Any, ...] = ()
    # Of a tuple: the kinds of each entry, or of every entry if repeated; an example for the error message.
    entries: tuple[tuple[_Kind, ...], ...] = ()
    repeated: bool = False
    example: str = ""

    def takes(self, value: object) -> bool:
        """Whether ``value`` has this type and is within the range."""
        return self.fits(value) and (self.within is None or value in self.within)  # type: ignore[operator]

    def fits(self, value: object) -> bool:
        """Whether ``value`` has this type. A whole number is a number; True, infinity and NaN are not."""
        if self.values:
            return any(type(value) is type(one) and value == one for one in self.values)
        if isinstance(value, tuple):
            return self.type is tuple and (self.repeated or len(value) == len(self.entries))
        fits = type(value) is self.type or (self.type is float and type(value) is int)
        return fits and not (isinstance(value, float) and not math.isfinite(value))

    def parse(self, value: Any, where: str) -> Any:
        """Text or JSON read as this type; ``value`` itself where that is not possible."""
        if self.type in (int, float):
            return _parse_number(value, whole=self.type is int)
        if self.type is tuple:
            return self._parse_tuple(value, where)
        if isinstance(value, str) and self.type in (bool, NoneType):
            return _CONSTANTS.get(value.lower(), value)
        return value

    def _parse_tuple(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            with suppress(json.JSONDecodeError, RecursionError):
                value = json.loads(value)
        if not isinstance(value, list | tuple) or not (self.repeated or len(value) == len(self.entries)):
            return value
        entries = self.entries * len(value) if self.repeated else self.entries
        return tuple(_convert(entry, kinds, where) for entry, kinds in zip(value, entries, strict=True))

    def __str__(self) -> str:
        if self.values:
            return " or ".join(map(repr, self.values))
        return _WORDS[self.type] + (f" {self.within}" if self.within else "")

    def requirement(self, value: object) -> str:
        """The words after "it must", for a ``value`` that is refused."""
        if self.values:
            return f"be one of {', '.join(map(str, self.values))}"
        if self.within is not None and self.fits(value):
            return f"lie {self.within}" if self.within.high < math.inf else f"be {self}"
        return f"be {_WORDS[self.type].lower()}" + (f", for example {self.example}" if self.example else "")


def _convert(value: Any, kinds: tuple[_Kind, ...], where: str) -> Any:
    if not kinds:
        return value
    candidates = [kind.parse(value, where) for kind in kinds]
    for kind, parsed in zip(kinds, candidates, strict=True):
        if kind.takes(parsed):
            return parsed
    # The first member of a union is its main one: "it must be a list", without "or None".
    raise WhycamError(f"{where} is {candidates[0]!r}; it must {kinds[0].requirement(candidates[0])}")


def _parse_number(value: Any, *, whole: bool) -> Any:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return value
    return int(number) if whole else number


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except Exception:  # some annotations are names that only the type checker knows: use the defaults' types
        return {}
    return {known.name: known.annotation for known in parameters if known.annotation is not known.empty}


@cache
def _fields(settings: type) -> dict[str, tuple[_Kind, ...]]:
    hints = get_type_hints(settings, include_extras=True)
    return {name: _kinds(hint) for name, hint in hints.items()}


def _kinds(annotation: Any) -> tuple[_Kind, ...]:
    """The kinds that an annotation lets in; empty for an annotation that is not understood."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        within = next((entry for entry in arguments if isinstance(entry, Range)), None)
        example = next((entry.text for entry in arguments if isinstance(entry, Example)), "")
        return tuple(replace(kind, within=within, example=example) for kind in _kinds(arguments[0]))
    if origin in (Union, UnionType):
        members = [_kinds(member) for member in arguments]
        return tuple(kind for member in members for kind in member) if all(members) else ()
    if origin is Literal:
        return (_Kind(object, values=arguments),)
    if origin is tuple:
        entries = tuple(_kinds(entry) for entry in arguments if not isinstance(entry, EllipsisType))
        return (_Kind(tuple, entries=entries, repeated=Ellipsis in arguments),)
    known = isinstance(annotation, type) and annotation in _WORDS and annotation is not tuple
    return (_Kind(annotation),) if known else ()
