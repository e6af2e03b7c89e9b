"""Where channels and positions lie in a layer's output: convolutional, channels-last, or a sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from whycam.errors import WhycamError

MOST_PREFIX = 8
"""Tokens that may stand before a grid (class, distillation and register tokens) where the layout is not given."""

# They say where the channels are, whatever the sizes.
_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd)

Kind = Literal["channels-first", "channels-last", "tokens"]


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as (B, C, …positions).

    Attributes:
        kind: "channels-first": (B, C, …); "channels-last": (B, …, C), as Swin has it; "tokens": (B, N, C).
        grid: of tokens, (h, w), row by row; not needed otherwise.
        prefix: tokens before the grid (class, register and distillation tokens), which have no position. Neither have
            those behind it (a detector's queries, say), which are never assumed: give the layout where there are any.
    """

    kind: Kind = "channels-first"
    grid: tuple[int, ...] = ()
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise WhycamError(f"a layout is {', '.join(map(repr, get_args(Kind)))}, not {self.kind!r}")
        whole = [*self.grid, self.prefix] if isinstance(self.grid, tuple | list) else [None]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in whole):
            raise WhycamError(
                f"a layout's grid holds whole numbers of tokens, (rows, columns), and its prefix is one; got grid="
                f"{self.grid!r}, prefix={self.prefix!r}"
            )
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.prefix < 0 or any(length < 1 for length in self.grid):
            raise WhycamError(f"a grid of {self.grid} tokens after {self.prefix} others does not exist")
        if (self.kind == "tokens") != bool(self.grid):
            raise WhycamError(
                "a layout of tokens needs its grid: whycam.Layout('tokens', grid=(rows, columns), prefix=tokens before)"
                if self.kind == "tokens"
                else f"a grid is for tokens: a {self.kind} output has its positions as axes"
            )

    def to_map(self, output: Tensor) -> Tensor:
        """A layer's output (or a gradient with respect to it) → (B, C, …positions), as a view where possible.

        Raises:
            WhycamError: the output holds no such tokens.
        """
        if self.kind == "channels-last":
            return output.movedim(-1, 1)
        if self.kind == "tokens":
            if output.ndim != 3 or output.shape[1] < self._grid.stop:
                raise WhycamError(
                    f"a layer with the output {tuple(output.shape)} does not have the layout that is given, "
                    f"{'×'.join(map(str, self.grid))} tokens after {self.prefix} others: give its own, or leave it out"
                )
            tokens = output[:, self._grid].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], *self.grid)
        return output

    def from_map(self, maps: Tensor, output: Tensor) -> Tensor:
        """The reverse of `to_map`: (B, C, …positions) → the layer's own form.

        Args:
            maps: what takes the place of the positions.
            output: (B, …) the layer's own output, which gives the tokens that have no position.
        """
        if self.kind == "channels-last":
            return maps.movedim(1, -1)
        if self.kind == "tokens":
            replaced = output.clone()
            replaced[:, self._grid] = maps.flatten(2).transpose(1, 2)
            return replaced
        return maps

    @property
    def _grid(self) -> slice:
        return slice(self.prefix, self.prefix + math.prod(self.grid))


def check_layout(given: object) -> None:
    """Refuse what is no layout and not None.

    Raises:
        WhycamError: ``given`` is something else.
    """
    if given is not None and not isinstance(given, Layout):
        raise WhycamError(
            "layout is a whycam.Layout, whycam.Layout('channels-last') say, or a mapping of layers' names to such; "
            f"got {given!r}"
        )


def detect_layout(
    output: Tensor,
    image_size: Sequence[int],
    module: nn.Module | None = None,
    hints: Callable[[], ArchitectureHints] | None = None,
) -> Layout:
    """Recognize a layer's layout from its type and shape.

    As many axes as the images have are channels-first where the module convolves, pools or normalizes them so, and else
    unless only the other reading has the image's proportions, or the module normalizes its last axis; of two axes one
    of which is as long as parts of the network are wide, that one holds the channels. Three axes for images and
    volumes are tokens: as few leading ones as possible are set aside so that the rest fills the grid that some patch
    size gives.

    Args:
        output: the layer's output, (B, …).
        image_size: (H, W) of the image, (T,) of a series, (D, H, W) of a volume.
        module: the layer, whose type may decide.
        hints: what the network that the layer belongs to tells; asked for only if it matters.

    Raises:
        WhycamError: the tokens fill no such grid.
    """
    axes = len(image_size)
    if output.ndim == 3 and axes >= 2:
        return _tokens(output, image_size, hints().grids if hints else ())
    if isinstance(module, _CHANNELS_FIRST):
        return Layout()
    if output.ndim == axes + 2 and axes == 1 and _normalizes_last(module, output.shape[-1]):
        return Layout("channels-last")
    if output.ndim == axes + 2 and axes >= 2:
        first = _proportional(output.shape[2:], image_size)
        last = _proportional(output.shape[1:-1], image_size)
        if last and (_normalizes_last(module, output.shape[-1]) or (not first and not _convolved(output, hints))):
            return Layout("channels-last")
    return Layout()


@dataclass(frozen=True)
class ArchitectureHints:
    """What a network's parts tell of the outputs of its others.

    Attributes:
        grids: into which convolutions that step by their own size would cut an image, as the first one of a vision
            transformer does, whatever the shape of its patches. One that fits goes before those of square patches.
        widths: how many channels its convolutions, normalizations and linear layers put out.
    """

    grids: tuple[tuple[int, ...], ...] = ()
    widths: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, image_size: Sequence[int]) -> ArchitectureHints:
        """Look through a network for images of that size."""
        grids: dict[tuple[int, ...], None] = {}
        widths: set[int] = set()
        for module in model.modules():
            if isinstance(module, _ConvNd):
                widths.add(module.out_channels)
                if grid := _patches(module, image_size):
                    grids[grid] = None
            elif isinstance(module, _NormBase):
                widths.add(module.num_features)
            elif isinstance(module, nn.GroupNorm):
                widths.add(module.num_channels)
            elif isinstance(module, nn.Linear):
                widths.add(module.out_features)
            elif isinstance(module, nn.LayerNorm):
                widths.add(module.normalized_shape[-1])
        return cls(tuple(grids), frozenset(widths))


def hints_for(model: nn.Module, image_size: Sequence[int]) -> Callable[[], ArchitectureHints]:
    """`ArchitectureHints.of` these, at the first call, and the same at every other."""
    return cache(partial(ArchitectureHints.of, model, tuple(image_size)))


def _patches(module: _ConvNd, image_size: Sequence[int]) -> tuple[int, ...]:
    patch = module.kernel_size
    if patch != module.stride or len(patch) != len(image_size) or math.prod(patch) == 1:
        return ()
    return tuple(size // length for size, length in zip(image_size, patch, strict=True))


def _convolved(output: Tensor, hints: Callable[[], ArchitectureHints] | None) -> bool:
    """Whether parts of the network are as wide as the second axis is long, and none as the last."""
    widths = hints().widths if hints else ()
    return output.shape[1] in widths and output.shape[-1] not in widths


def _normalizes_last(module: nn.Module | None, channels: int) -> bool:
    """Whether a module is, or without a convolution of its own is made around, LayerNorms over its last axis."""
    parts = [] if module is None else list(module.modules())
    norms = [part for part in parts if isinstance(part, nn.LayerNorm)]
    alike = any(tuple(norm.normalized_shape) == (channels,) for norm in norms)
    return alike and not any(isinstance(part, _CHANNELS_FIRST) for part in parts)


def _proportional(grid: Sequence[int], image_size: Sequence[int]) -> bool:
    """Whether ``grid`` is the image's size divided by the same factor everywhere, give or take what rounding does."""
    factor = max(size / cells for size, cells in zip(image_size, grid, strict=True))
    return factor >= 1 and all(
        math.floor(size / factor) <= cells <= math.ceil(size / factor)
        for size, cells in zip(image_size, grid, strict=True)
    )


def _tokens(output: Tensor, image_size: Sequence[int], known: Iterable[tuple[int, ...]]) -> Layout:
    tokens = output.shape[1]
    # What does not fill a patch is cut off by a convolution, or padded.
    square = (
        grid
        for patch in range(1, min(image_size) + 1)
        for grid in (tuple(size // patch for size in image_size), tuple(-(-size // patch) for size in image_size))
    )

    def largest(grids: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
        fitting = (grid for grid in grids if math.prod(grid) and 0 <= tokens - math.prod(grid) <= MOST_PREFIX)
        return max(fitting, key=math.prod, default=None)

    if grid := largest(known) or largest(square):
        return Layout("tokens", grid, tokens - math.prod(grid))
    size = "×".join(map(str, image_size))
    raise WhycamError(
        f"{tokens} tokens fill no grid of the proportions of a {size} image; "
        "give the layout: whycam.Layout('tokens', grid=(rows, columns), prefix=tokens before the grid)"
    )
