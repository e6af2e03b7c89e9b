"""Class indices and other values that are given once for all images, or once per image."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.errors import WhycamError

Index = int | str | Sequence[int] | Sequence[str] | Tensor | np.ndarray[Any, Any]


def pick(logits: Tensor, index: Index) -> Tensor:
    """(B, K) logits, one index for all images or one per image → (B,)."""
    return logits.gather(1, indices_of(logits, index)[:, None])[:, 0]


def indices_of(logits: Tensor, index: Index) -> Tensor:
    """(B,) class indices, checked."""
    if logits.ndim != 2:
        raise WhycamError(f"a class target needs (B, K) logits, the model gives {tuple(logits.shape)}")
    images, classes = logits.shape
    indices = torch.as_tensor(require_indices(index), device=logits.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool or indices.ndim > 1:
        raise WhycamError(f"a target class is a whole number, one for all images or (B,) of them; got {index!r}")
    if indices.ndim and len(indices) != images:
        raise WhycamError(f"{len(indices)} target classes are given for {images} images; give one, or one per image")
    lowest, highest = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise WhycamError(f"target class {wrong} does not exist; this model has classes 0 to {classes - 1}")
    return indices.long().expand(images)


def names_to_indices(value: Any, index: Callable[[str], int]) -> Any:
    """Replace a class name by its index, also in nested lists; every other value stays as it is."""
    if isinstance(value, str):
        return index(value)
    return [names_to_indices(member, index) for member in value] if isinstance(value, list | tuple) else value


def has_names(value: object) -> bool:
    """Whether a value is a name or a nested list that holds one."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(has_names, value)))


def require_indices(index: Any) -> Any:
    """Return ``index``, if it holds no names.

    Raises:
        WhycamError: it holds a class name, which only `whycam.explain` can look up.
    """
    if has_names(index):
        raise WhycamError(f"{index!r} is a class name: whycam.explain looks it up, here an index is needed")
    return index


def whole_number(value: Any) -> int | None:
    """An integer of any type (NumPy's, for example) as an int; None for every other value, including booleans."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def without_unit_batch(value: Any, axes: int) -> Tensor:
    """Convert to a tensor, and drop a batch axis of length 1 before its ``axes`` axes: one value for all images."""
    tensor = torch.as_tensor(value)
    return tensor[0] if tensor.ndim == axes + 1 and len(tensor) == 1 else tensor


def at_rows(value: Any, rows: Tensor) -> Any:
    """The values of the images at ``rows``, if there is one per image; one value for all images stays as it is."""
    if isinstance(value, list | tuple | np.ndarray):
        value = torch.as_tensor(np.asarray(value))
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
