"""The pickles of CIFAR-10's python archive, read without running anything in them.

A pickle is a program for a small stack machine. ``pickle.Unpickler`` with a restricted ``find_class`` still lets a
file of a few bytes claim gigabytes (through its memo, or through numpy's constructors). So the instructions are
interpreted here: the few that a dictionary of lists, strings and one uint8 array needs, with every name looked up in
a table instead of imported, and with bounds on their number and on what they allocate.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from whycam.data.decode import Pixels
from whycam.errors import WhycamError

_MAX_INSTRUCTIONS = 1_000_000  # a CIFAR-10 batch has about 45,000

_RECONSTRUCT = "numpy.core.multiarray._reconstruct"
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_NAMES = {
    _RECONSTRUCT: _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    _NDARRAY: _NDARRAY,
    _DTYPE: _DTYPE,
    _ENCODE: _ENCODE,  # how Python 3 writes bytes in protocol 2
}
_IGNORED = frozenset({"PROTO", "FRAME"})
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_BYTE_STRINGS = frozenset({"BINSTRING", "SHORT_BINSTRING"})  # Python 2's str; pickletools hands them over as Latin-1
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """A name that the pickle asks for; never the thing itself."""

    value: str


@dataclass
class _Array:
    """An array in the making: created empty, filled by the BUILD instruction."""

    values: Pixels | None = None


class _RefusedError(Exception):
    pass


def unpickle_batch(data: bytes, where: str) -> dict[str, Any]:
    """Read a dictionary of numbers, strings, lists and uint8 arrays; nothing else can come out.

    Args:
        data: the pickle, of any protocol from 2 to 4; the caller bounds its length.
        where: what error messages call the file.

    Returns:
        The dictionary, with text keys (values that Python 2 wrote as ``str`` stay bytes).

    Raises:
        WhycamError: the pickle is truncated or damaged, asks for a name outside the table (the sentence says
            which), or is not a dictionary.
    """
    try:
        result = _Machine(len(data)).run(data)
    except _RefusedError as error:
        raise WhycamError(
            f"{where} is not a plain CIFAR-10 batch ({error}): it was not opened; download the official archive"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise WhycamError(
            f"{where} is truncated or damaged, or no CIFAR-10 batch: download the official archive"
        ) from error
    if not isinstance(result, dict):
        raise WhycamError(f"{where} holds no dictionary, so it is no CIFAR-10 batch: download the official archive")
    return {
        key if isinstance(key, str) else key.decode("latin-1"): value.values if isinstance(value, _Array) else value
        for key, value in result.items()
    }


class _Machine:
    def __init__(self, length: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._encodable = length  # bytes that _codecs.encode may still make, so that it cannot multiply

    def run(self, data: bytes) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(data)):
            if count >= _MAX_INSTRUCTIONS:
                raise _RefusedError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                return self._stack.pop()
            self._step(code.name, argument)
        raise ValueError("no STOP")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _BYTE_STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("APPENDS", "APPEND"):
            values = self._since_mark() if name == "APPENDS" else [stack.pop()]
            self._top(list).extend(values)
        elif name in ("SETITEMS", "SETITEM"):
            values = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            self._set_items(values)
        elif name == "GLOBAL":
            stack.append(_look_up(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_look_up(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            _build(stack[-2], stack.pop())
        elif name not in _IGNORED:
            raise _RefusedError(f"it uses the pickle instruction {name}")

    def _since_mark(self) -> list[Any]:
        position = self._marks.pop()
        values = self._stack[position:]
        del self._stack[position:]
        return values

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise TypeError(f"{kind.__name__} expected")
        return self._stack[-1]

    def _set_items(self, values: list[Any]) -> None:
        keys = values[0::2]
        if not all(type(key) in (str, bytes) for key in keys):
            raise TypeError("keys must be strings")
        self._top(dict).update(zip(keys, values[1::2], strict=True))

    def _call(self, function: Any, arguments: Any) -> Any:
        if function == _Name(_RECONSTRUCT):
            if arguments[0] != _Name(_NDARRAY):
                raise TypeError("ndarray expected")
            return _Array()
        if function == _Name(_DTYPE):
            if arguments[0] not in ("u1", b"u1"):
                raise _RefusedError("it holds an array of another type than uint8")
            return np.dtype(np.uint8)
        if function == _Name(_ENCODE):
            text, encoding = arguments
            self._encodable -= len(text)
            if encoding != "latin1" or self._encodable < 0:
                raise _RefusedError("it encodes strings in a way no batch needs")
            return text.encode("latin-1")
        raise _RefusedError(f"it calls {getattr(function, 'value', 'something that is no function')}")


def _look_up(module: Any, attribute: Any) -> _Name:
    if type(module) is not str or type(attribute) is not str:
        raise TypeError("names must be strings")  # and anything else may be too large to show
    name = f"{module}.{attribute}"
    if name not in _NAMES:
        raise _RefusedError(f"it asks for {name[:80]}")
    return _Name(_NAMES[name])


def _build(target: Any, state: Any) -> None:
    """What numpy's ``__setstate__`` does, for uint8 alone."""
    if isinstance(target, np.dtype):
        return  # byte order and flags, which a single byte does not have
    if not isinstance(target, _Array):
        raise TypeError("array expected")
    _, shape, dtype, fortran, content = state
    if dtype != np.dtype(np.uint8) or type(content) is not bytes or len(content) != prod(shape):
        raise ValueError("array contents do not fit its shape")
    target.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
