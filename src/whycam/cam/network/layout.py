"""The layout of channels and positions in a layer's output: channels-first, channels-last, or a sequence of tokens."""

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
"""The most tokens before a grid (class, distillation and register tokens) that a detected layout may have."""

# These modules have channels-first outputs, whatever the sizes.
_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd)

Kind = Literal["channels-first", "channels-last", "tokens"]


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as (B, C, …positions).

    Attributes:
        kind: "channels-first": (B, C, …); "channels-last": (B, …, C), as in Swin; "tokens": (B, N, C).
        grid: (h, w) of the tokens, row by row; only for tokens.
        prefix: number of tokens before the grid (class, register and distillation tokens), which have no position.
            Tokens after the grid (a detector's queries, for example) have no position either. `detect_layout` never
            assumes any, so give the layout of such a layer yourself.
    """

    kind: Kind = "channels-first"
    grid: tuple[int, ...] = ()
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise WhycamError(f"a layout is {', '.join(map(repr, get_args(Kind)))}, not {self.kind!r}")
        numbers = [*self.grid, self.prefix] if isinstance(self.grid, tuple | list) else [None]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
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
        """A layer's output (or a gradient with respect to it) → (B, C, …positions), as a view if possible.

        Raises:
            WhycamError: the output has too few tokens for this layout, or is no sequence of tokens.
        """
        if self.kind == "channels-last":
            return output.movedim(-1, 1)
        if self.kind == "tokens":
            if output.ndim != 3 or output.shape[1] < self._grid.stop:
                raise WhycamError(
                    f"a layer with the output {tuple(output.shape)} does not have the layout that is given, "
                    f"{'×'.join(map(str, self.grid))} tokens after {self.prefix} others: give its own layout, or none"
                )
            tokens = output[:, self._grid].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], *self.grid)
        return output

    def from_map(self, maps: Tensor, output: Tensor) -> Tensor:
        """The reverse of `to_map`: (B, C, …positions) → the layer's own form.

        Args:
            maps: the new values at the positions.
            output: (B, …) the layer's own output, from which the tokens without a position are taken.
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


def check_layout(layout: object) -> None:
    """Check that ``layout`` is a `Layout` or None.

    Raises:
        WhycamError: it is something else.
    """
    if layout is not None and not isinstance(layout, Layout):
        raise WhycamError(
            "layout is a whycam.Layout, for example whycam.Layout('channels-last'), or a mapping of layers' names to "
            f"such; got {layout!r}"
        )


def detect_layout(
    output: Tensor,
    image_size: Sequence[int],
    module: nn.Module | None = None,
    hints: Callable[[], ArchitectureHints] | None = None,
) -> Layout:
    """Recognize a layer's layout from its type and shape.

    An output with as many axes as the images is channels-first, unless all of the following hold: the module is no
    convolution, pooling or normalization of channels-first outputs, channels-last positions have the image's
    proportions, and either the module normalizes its last axis, or channels-first positions do not have these
    proportions and the network's widths do not say that the second axis holds the channels. For series, an output is
    channels-last only if the module normalizes its last axis.

    An output with three axes for images and volumes is a sequence of tokens. Its grid is the largest one that some
    patch size gives and that leaves at most `MOST_PREFIX` tokens before it.

    Args:
        output: the layer's output, (B, …).
        image_size: (H, W) of an image, (T,) of a series, (D, H, W) of a volume.
        module: the layer, whose type may decide.
        hints: returns the hints of the network that the layer belongs to; called only if they are needed.

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
    """Facts about a network's modules that help to recognize the layout of other layers' outputs.

    Attributes:
        grids: the grids of patches that the network's patch embeddings make of an image; a patch embedding is a
            convolution whose stride equals its kernel size. A fitting one is preferred to the grids of square patches.
        widths: the numbers of output channels of the network's convolutions, normalizations and linear layers.
    """

    grids: tuple[tuple[int, ...], ...] = ()
    widths: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, image_size: Sequence[int]) -> ArchitectureHints:
        """Collect the hints from a network's modules, for images of size ``image_size``."""
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
    """A function that returns `ArchitectureHints.of` these arguments, computed at the first call."""
    return cache(partial(ArchitectureHints.of, model, tuple(image_size)))


def _patches(module: _ConvNd, image_size: Sequence[int]) -> tuple[int, ...]:
    patch = module.kernel_size
    if patch != module.stride or len(patch) != len(image_size) or math.prod(patch) == 1:
        return ()
    return tuple(size // length for size, length in zip(image_size, patch, strict=True))


def _convolved(output: Tensor, hints: Callable[[], ArchitectureHints] | None) -> bool:
    """Whether the length of the second axis is a width of the network, and that of the last axis is not."""
    widths = hints().widths if hints else ()
    return output.shape[1] in widths and output.shape[-1] not in widths


def _normalizes_last(module: nn.Module | None, channels: int) -> bool:
    """Whether a module is or contains a LayerNorm over its last axis, and contains no channels-first module."""
    parts = [] if module is None else list(module.modules())
    norms = [part for part in parts if isinstance(part, nn.LayerNorm)]
    fits = any(tuple(norm.normalized_shape) == (channels,) for norm in norms)
    return fits and not any(isinstance(part, _CHANNELS_FIRST) for part in parts)


def _proportional(grid: Sequence[int], image_size: Sequence[int]) -> bool:
    """Whether ``grid`` is the image's size divided by one factor along all axes, up to rounding."""
    factor = max(size / cells for size, cells in zip(image_size, grid, strict=True))
    return factor >= 1 and all(
        math.floor(size / factor) <= cells <= math.ceil(size / factor)
        for size, cells in zip(image_size, grid, strict=True)
    )


def _tokens(output: Tensor, image_size: Sequence[int], known: Iterable[tuple[int, ...]]) -> Layout:
    tokens = output.shape[1]
    # A network cuts off or pads the pixels at the border that do not fill a patch: round down and up.
    square_patches = (
        grid
        for patch in range(1, min(image_size) + 1)
        for grid in (tuple(size // patch for size in image_size), tuple(-(-size // patch) for size in image_size))
    )

    def largest(grids: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
        fitting = (grid for grid in grids if math.prod(grid) and 0 <= tokens - math.prod(grid) <= MOST_PREFIX)
        return max(fitting, key=math.prod, default=None)

    if grid := largest(known) or largest(square_patches):
        return Layout("tokens", grid, tokens - math.prod(grid))
    size = "×".join(map(str, image_size))
    raise WhycamError(
        f"{tokens} tokens fill no grid of the proportions of a {size} image; "
        "give the layout: whycam.Layout('tokens', grid=(rows, columns), prefix=tokens before the grid)"
    )
