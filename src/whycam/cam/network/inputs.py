"""What a network is called with: a batch of images, alone or among other arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whycam.errors import WhycamError
from whycam.nn_utils import without_inference_tensors

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

    def without_inference_tensors(self) -> Inputs:
        """The same with copies of what was made under ``inference_mode`` alone."""
        return self._each(without_inference_tensors)

    def _each(self, change: Callable[[Any], Any]) -> Inputs:
        return Inputs(
            tuple(map(change, self.args)), {name: change(value) for name, value in self.kwargs.items()}, self.place
        )


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and torch.is_floating_point(value)


def check_images(images: Tensor, model: nn.Module) -> None:
    """Refuse a batch that the model cannot take.

    Raises:
        WhycamError: its shape, type, device or values do not fit.
    """
    takes: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    # By isinstance: parametrized convolutions have types of their own. Without any, the network itself decides.
    axes = {count for kind, count in takes.items() if any(isinstance(module, kind) for module in model.modules())}
    if axes and images.ndim not in axes:
        shapes = {3: "(B, C, T)", 4: "(B, C, H, W)", 5: "(B, C, D, H, W)"}
        raise WhycamError(
            f"images must have the shape {' or '.join(shapes[count] for count in sorted(axes))}, "
            f"got {tuple(images.shape)}"
            + ("; one image needs a batch axis: images[None]" if images.ndim + 1 in axes else "")
        )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv3d)), None)
    if first is not None and images.ndim == 5 and images.shape[1] != first.in_channels == images.shape[2]:
        raise WhycamError(
            f"the video {tuple(images.shape)} has its frames before its channels: wrap the model in a module that "
            "passes on x.transpose(1, 2), and give that videos of the shape (B, C, T, H, W)"
        )
    if not len(images):
        raise WhycamError("the batch of images is empty")
    if not images.is_floating_point():
        raise WhycamError(f"images must be normalized floats, got {images.dtype}: pass spec.preprocess(images)")
    if not bool(images.isfinite().all()):
        count = int((~images.isfinite()).flatten(1).any(dim=1).sum())
        raise WhycamError(f"{count} of {len(images)} images hold NaN or infinite values")
    parameter = next(model.parameters(), None)
    if parameter is None:
        return
    if parameter.device != images.device:
        raise WhycamError(f"the images are on {images.device}, the model on {parameter.device}: move one of them")
    mixed = torch.is_autocast_enabled(images.device.type)
    if parameter.dtype != images.dtype and not mixed:
        raise WhycamError(
            f"the images are {images.dtype}, the model {parameter.dtype}: convert one, for example "
            f"images.to({parameter.dtype})"
        )


@contextmanager
def naming_channel_mismatch(images: Tensor) -> Iterator[None]:
    """Say it in our words where a convolution is given the images themselves and takes another number of channels."""
    try:
        yield
    except RuntimeError as error:
        said = re.search(r"expected input\[([\d, ]+)\] to have (\d+) channels", str(error))
        if said is None or tuple(map(int, said[1].split(",")))[1:] != tuple(images.shape[1:]):
            raise
        raise WhycamError(
            f"the images have {images.shape[1]} channel(s), the model's first convolution takes {said[2]}"
        ) from error
