"""Conversions between numpy, which users' methods take, and tensors, which this package's methods take."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
_F = TypeVar("_F", bound=Callable[..., Any])


def on_device(function: _F) -> _F:
    """Mark a method that takes tensors on any device.

    A subclass that overrides such a method is written for numpy and is handed numpy. Where it calls ``super()`` with
    numpy arrays, the wrapper converts them, and the result back.
    """

    @wraps(function)
    def converted(self: object, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if not any(isinstance(value, np.ndarray) for value in given):
            return function(self, *args, **kwargs)
        result = function(
            self, *(_tensor(value) for value in args), **{name: _tensor(value) for name, value in kwargs.items()}
        )
        return to_numpy(result)

    converted.takes_tensors = True  # type: ignore[attr-defined]
    return converted  # type: ignore[return-value]


def takes_tensors(function: object) -> bool:
    """Whether ``function`` is marked by `on_device`."""
    return bool(getattr(function, "takes_tensors", False))


def to_numpy(value: Any) -> Any:
    """A tensor as a numpy array on the CPU; anything else as it is."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def to_tensor(value: Any, like: Tensor) -> Tensor:
    """What a user's function returned, as a tensor on the device of ``like``."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(like.device)


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
