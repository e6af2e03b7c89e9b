"""What a network is called with: a batch of images, alone or among other arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.nn_utils import ordinary

InputsLike = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Inputs:
    """A network's arguments.

    Attributes:
        args: by position.
        kwargs: by name.
        place: which of them is the batch of images.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str

    @classmethod
    def of(cls, given: InputsLike) -> Inputs:
        """Wrap a tensor, a tuple of positional arguments or a mapping of named ones.

        The images are the first floating-point tensor with at least three axes.

        Raises:
            WhycamError: there is no such tensor.
        """
        if isinstance(given, Tensor):
            return cls((given,), {}, 0)
        if isinstance(given, Mapping):
            named = {str(name): value for name, value in given.items()}
            place: int | str | None = next((name for name, value in named.items() if _is_image(value)), None)
            wrapped: tuple[tuple[Any, ...], dict[str, Any]] = ((), named)
        elif isinstance(given, tuple | list):
            place = next((index for index, value in enumerate(given) if _is_image(value)), None)
            wrapped = (tuple(given), {})
        else:
            raise WhycamError(f"images must be a torch tensor (B, C, H, W), got {type(given).__name__}")
        if not any(isinstance(value, Tensor) for value in (*wrapped[0], *wrapped[1].values())):
            raise WhycamError(
                "images must be a torch tensor (B, C, H, W), or a tuple or mapping of the model's arguments that "
                f"holds one; got {type(given).__name__} without any"
            )
        if place is None:
            raise WhycamError("none of the inputs is a batch of images, a float tensor (B, C, H, W)")
        return cls(*wrapped, place)

    @property
    def images(self) -> Tensor:
        """(B, C, …)."""
        images: Tensor = self.args[self.place] if isinstance(self.place, int) else self.kwargs[self.place]
        return images

    def with_images(self, images: Tensor, rows: Tensor | None = None) -> Inputs:
        """The same arguments with other images; other tensors as long as the batch follow ``rows`` (n,)."""
        batch = len(self.images)

        def follow(value: Any) -> Any:
            if rows is None or not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
                return value
            return value[rows.to(value.device)]

        args = tuple(images if index == self.place else follow(value) for index, value in enumerate(self.args))
        kwargs = {name: images if name == self.place else follow(value) for name, value in self.kwargs.items()}
        return Inputs(args, kwargs, self.place)

    def detached(self) -> Inputs:
        """Copies without a graph: the network may work in place, and an inference tensor cannot be saved."""

        def free(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().clone()

        return self._each(free)

    def ordinary(self) -> Inputs:
        """The same with copies of what was made under ``inference_mode`` alone."""
        return self._each(ordinary)

    def _each(self, change: Callable[[Any], Any]) -> Inputs:
        return Inputs(
            tuple(map(change, self.args)), {name: change(value) for name, value in self.kwargs.items()}, self.place
        )


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and torch.is_floating_point(value)
