"""The pickles of CIFAR-10's python archive, read without running anything in them.

``find_class`` allows a few names only, which is the standard library's pattern for untrusted pickles. They stand for
functions of this file, because numpy's own allocate whatever a pickle claims. Even so a small pickle could make
Python's C code fill gigabytes (by a memo index), overflow the stack (by nested tuples as keys) or take hours (by keys
that hash alike); ``_check_instructions`` refuses these before anything is loaded.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from whycam.data.decode import Pixels
from whycam.errors import WhycamError

# A CIFAR-10 batch has 45,000 instructions, and 90,000 when Python 3 writes it with protocol 2.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_TUPLES = 16  # besides the arguments of a call; a batch has 4

_TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_MEMO_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_INSTRUCTIONS = (
    frozenset({"PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"})
    | frozenset({"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"})
    | frozenset({"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
    | frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"})
    | frozenset({"EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "BINGET", "LONG_BINGET"})
    | _TUPLES
    | _MEMO_PUTS
)


class _RefusedError(Exception):
    """The pickle asks for something that no batch needs."""


def unpickle_batch(data: bytes, name: str) -> dict[str, Any]:
    """Read a dictionary of numbers, strings, lists and uint8 arrays; nothing else can come out.

    Args:
        data: the pickle, of any protocol from 2 to 4; the caller bounds its length.
        name: what error messages call the file.

    Returns:
        The dictionary, with text keys (values that Python 2 wrote as ``str`` stay bytes).

    Raises:
        WhycamError: the pickle is truncated or damaged, asks for a name that is not allowed (the sentence says
            which), or is not a dictionary.
    """
    try:
        _check_instructions(data)
        batch = _BatchUnpickler(data).load()
        if isinstance(batch, dict):
            return {
                key if isinstance(key, str) else key.decode("latin-1"): _plain(value) for key, value in batch.items()
            }
    except _RefusedError as error:
        raise WhycamError(
            f"{name} is not a plain CIFAR-10 batch ({error}): it was not opened; download the official archive"
        ) from None
    except Exception as error:
        # pickle answers damaged data with almost any exception.
        raise WhycamError(
            f"{name} is truncated or damaged, or no CIFAR-10 batch: download the official archive"
        ) from error
    raise WhycamError(f"{name} holds no dictionary, so it is no CIFAR-10 batch: download the official archive")


def _check_instructions(data: bytes) -> None:
    """Refuse what a batch does not need, before pickle's C code sees it; a forged length is a ``ValueError``."""
    tuples = 0
    after_tuple = False
    for count, (code, argument, _) in enumerate(pickletools.genops(data)):
        if count >= _MAX_INSTRUCTIONS:
            raise _RefusedError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
        if code.name not in _INSTRUCTIONS:
            raise _RefusedError(f"it uses the pickle instruction {code.name}")
        _check_argument(code.name, argument)
        # Python hashes nested tuples without a limit on depth. The arguments of calls are checked by the functions.
        tuples += after_tuple and code.name not in _MEMO_PUTS and code.name != "REDUCE"
        if tuples > _MAX_TUPLES:
            raise _RefusedError(f"it has more than {_MAX_TUPLES} tuples")
        after_tuple = code.name in _TUPLES or (after_tuple and code.name in _MEMO_PUTS)


def _check_argument(instruction: str, argument: Any) -> None:
    if instruction == "GLOBAL":
        _check_name(argument.replace(" ", ".", 1))
    if instruction == "LONG_BINPUT" and argument >= _MAX_INSTRUCTIONS:
        raise _RefusedError(f"it uses the memo index {argument:,}")
    # Larger integers can be made to hash alike, so that a dictionary of them takes hours.
    if instruction == "LONG1" and argument.bit_length() > 64:
        raise _RefusedError("it holds an integer of more than 64 bits")


class _Function:
    """What the pickle gets for an allowed name: it can be called, but not changed."""

    __slots__ = ("_function", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError(f"it changes {self.name}")


class _Dtype:
    """Stands for uint8, the only type of a batch's array."""

    def __setstate__(self, state: object) -> None:
        """Byte order and flags, which a single byte does not have."""


class _Array:
    """Stands for an array: created empty, then filled by ``__setstate__``, as numpy does it."""

    pixels: Pixels | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, (height, width), dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or [type(value) for value in (height, width, content)] != [int, int, bytes]:
            raise TypeError("no table of bytes")
        if len(content) != height * width:
            raise ValueError("array contents do not fit its shape")
        self.pixels = np.frombuffer(content, np.uint8).reshape((height, width), order="F" if fortran else "C")


class _BatchUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="bytes")
        self._encode = _Encode(len(data))

    def find_class(self, module: str, name: str) -> _Function:
        full_name = f"{module}.{name}"
        _check_name(full_name)
        return _Function(full_name, _FUNCTIONS.get(full_name, self._encode))


def _check_name(full_name: str) -> None:
    if full_name not in _FUNCTIONS and full_name != _ENCODE:
        shown = full_name[:80]
        raise _RefusedError(f"it asks for {shown if shown.isprintable() else ascii(shown)}")


class _Encode:
    """Encodes at most ``budget`` characters in all, so that a pickle cannot multiply what it holds."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def __call__(self, text: str, encoding: str) -> bytes:
        self._budget -= len(text)
        if encoding != "latin1" or self._budget < 0:
            raise _RefusedError("it encodes strings in a way no batch needs")
        return text.encode("latin-1")


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    if not isinstance(kind, _Function) or kind.name != _NDARRAY or shape != (0,) or typecode not in ("b", b"b"):
        raise ValueError("arguments that numpy does not write")
    return _Array()


def _dtype(name: object, align: object, copy: object) -> _Dtype:
    if name not in ("u1", b"u1"):
        raise _RefusedError("it holds an array of another type than uint8")
    if (align, copy) != (0, 1):
        raise ValueError("arguments that numpy does not write")
    return _Dtype()


def _refuse_ndarray(*_: object) -> None:
    raise _RefusedError(f"it calls {_NDARRAY}")


_NDARRAY = "numpy.ndarray"
_ENCODE = "_codecs.encode"  # how Python 3 writes bytes in protocol 2
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.dtype": _dtype,
    _NDARRAY: _refuse_ndarray,
}


def _plain(value: Any) -> Any:
    return value.pixels if isinstance(value, _Array) else value
