"""A network's arguments: a batch of images, alone or among other arguments."""

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
        key: index or name of the argument that is the batch of images.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: int | str

    @classmethod
    def of(cls, arguments: InputsLike) -> Inputs:
        """Wrap a tensor, a tuple of positional arguments or a mapping of named ones.

        The images are the first floating-point tensor with at least three axes.

        Raises:
            WhycamError: there is no such tensor.
        """
        if isinstance(arguments, Tensor):
            return cls((arguments,), {}, 0)
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(arguments, Mapping):
            kwargs = {str(name): value for name, value in arguments.items()}
        elif isinstance(arguments, tuple | list):
            args = tuple(arguments)
        else:
            raise WhycamError(f"images must be a torch tensor (B, C, H, W), got {type(arguments).__name__}")
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        if not any(isinstance(value, Tensor) for _, value in named):
            raise WhycamError(
                "images must be a torch tensor (B, C, H, W), or a tuple or mapping of the model's arguments that "
                f"holds one; got {type(arguments).__name__} without any"
            )
        key = next((key for key, value in named if _is_image(value)), None)
        if key is None:
            raise WhycamError("none of the inputs is a batch of images, a float tensor (B, C, H, W)")
        return cls(args, kwargs, key)

    @property
    def images(self) -> Tensor:
        """(B, C, …)."""
        images: Tensor = self.args[self.key] if isinstance(self.key, int) else self.kwargs[self.key]
        return images

    def with_images(self, images: Tensor, rows: Tensor | None = None) -> Inputs:
        """The same arguments with other images; ``rows`` (n,) indexes the other tensors with one entry per image."""
        batch = len(self.images)

        def select(value: Any) -> Any:
            if rows is None or not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
                return value
            return value[rows.to(value.device)]

        args = tuple(images if index == self.key else select(value) for index, value in enumerate(self.args))
        kwargs = {name: images if name == self.key else select(value) for name, value in self.kwargs.items()}
        return Inputs(args, kwargs, self.key)

    def detached(self) -> Inputs:
        """Copies without a graph: the network may change them in place, and autograd cannot save inference tensors."""
        return self._map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value)

    def without_inference_tensors(self) -> Inputs:
        """The same arguments with copies of the tensors that were made under ``inference_mode``."""
        return self._map(without_inference_tensors)

    def _map(self, change: Callable[[Any], Any]) -> Inputs:
        return Inputs(
            tuple(map(change, self.args)), {name: change(value) for name, value in self.kwargs.items()}, self.key
        )


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and torch.is_floating_point(value)


def check_images(images: Tensor, model: nn.Module) -> None:
    """Refuse a batch that does not fit the model.

    Raises:
        WhycamError: its shape, type, device or values do not fit.
    """
    axes_of: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    # By isinstance, because parametrized convolutions are subclasses. Without a convolution any shape is accepted.
    axes = {count for kind, count in axes_of.items() if any(isinstance(module, kind) for module in model.modules())}
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
    autocast = torch.is_autocast_enabled(images.device.type)
    if parameter.dtype != images.dtype and not autocast:
        raise WhycamError(
            f"the images are {images.dtype}, the model {parameter.dtype}: convert one, for example "
            f"images.to({parameter.dtype})"
        )


@contextmanager
def naming_channel_mismatch(images: Tensor) -> Iterator[None]:
    """Turn torch's error into a clear one, if the first convolution expects another number of channels."""
    try:
        yield
    except RuntimeError as error:
        match = re.search(r"expected input\[([\d, ]+)\] to have (\d+) channels", str(error))
        if match is None or tuple(map(int, match[1].split(",")))[1:] != tuple(images.shape[1:]):
            raise
        raise WhycamError(
            f"the images have {images.shape[1]} channel(s), the model's first convolution takes {match[2]}"
        ) from error
