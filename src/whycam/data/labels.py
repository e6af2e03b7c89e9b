"""Class names of a data set, matched to the class names of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whycam.data.source import IndexArray
from whycam.errors import WhycamError, near_misses

# Names under which CIFAR-10's classes are widely written.
_SYNONYMS = {"plane": "airplane", "car": "automobile"}


def match_classes(found: Sequence[str], wanted: Sequence[str], where: str) -> IndexArray:
    """Where each class of a data set stands among a model's classes.

    Names are compared exactly, then without regard to case, ``_``, ``-`` and spaces, and as CIFAR-10's usual
    short names (``plane``, ``car``).

    Args:
        found: the data set's class names.
        wanted: the model's class names.
        where: what error messages call the data set.

    Returns:
        (len(found),) int64 positions in ``wanted``.

    Raises:
        WhycamError: a class of the data set is unknown to the model (near misses are listed), or two of them are
            the same to it.
    """
    exact = {name: position for position, name in enumerate(wanted)}
    loose: dict[str, list[int]] = {}
    for position, name in enumerate(wanted):
        loose.setdefault(_normal(name), []).append(position)
    positions: list[int] = []
    for name in found:
        candidates = [exact[name]] if name in exact else loose.get(_normal(name), [])
        if len(candidates) != 1:
            raise WhycamError(
                f"{where}: {name!r} is not one of the model's {len(wanted)} classes{near_misses(name, wanted)}"
            )
        if candidates[0] in positions:
            twin = found[positions.index(candidates[0])]
            raise WhycamError(
                f"{where}: {twin!r} and {name!r} both mean the model's class {wanted[candidates[0]]!r}: merge them"
            )
        positions.append(candidates[0])
    return np.asarray(positions, dtype=np.int64)


def _normal(name: str) -> str:
    plain = name.casefold().replace("_", " ").replace("-", " ").strip()
    return _SYNONYMS.get(plain, plain)
