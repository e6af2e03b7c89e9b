"""Where channels and positions lie in a layer's output: convolutional, channels-last, or a sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from whycam.errors import WhycamError

MOST_PREFIX = 8
"""Tokens that may stand before a grid (class, distillation and register tokens) where the layout is not given."""

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

    def to_map(self, output: Tensor) -> Tensor:
        """A layer's output (or a gradient with respect to it) → (B, C, …positions), as a view where possible."""
        if self.kind == "channels-last":
            return output.movedim(-1, 1)
        if self.kind == "tokens":
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


def detect_layout(output: Tensor, image_size: Sequence[int], module: nn.Module | None = None) -> Layout:
    """Recognise a layer's layout from its shape.

    As many axes as the images have are channels-first unless only the other reading has the image's proportions, or
    the module normalises its last axis. Three axes for images and volumes are tokens: as few leading ones as possible
    are set aside so that the rest fills the grid that some patch size gives.

    Args:
        output: the layer's output, (B, …).
        image_size: (H, W) of the image, (T,) of a series, (D, H, W) of a volume.
        module: the layer, whose type may decide.

    Raises:
        WhycamError: the tokens fill no such grid.
    """
    axes = len(image_size)
    if output.ndim == 3 and axes >= 2:
        return _tokens(output, image_size)
    normalises_last = isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (output.shape[-1],)
    if output.ndim == axes + 2 and axes == 1 and normalises_last:
        return Layout("channels-last")
    if output.ndim == axes + 2 and axes >= 2:
        first = _proportional(output.shape[2:], image_size)
        last = _proportional(output.shape[1:-1], image_size)
        if last and (not first or normalises_last):
            return Layout("channels-last")
    return Layout()


def _proportional(grid: Sequence[int], image_size: Sequence[int]) -> bool:
    """Whether ``grid`` is the image's size divided by the same factor everywhere, give or take what rounding does."""
    factor = max(size / cells for size, cells in zip(image_size, grid, strict=True))
    return factor >= 1 and all(
        math.floor(size / factor) <= cells <= math.ceil(size / factor)
        for size, cells in zip(image_size, grid, strict=True)
    )


def _tokens(output: Tensor, image_size: Sequence[int]) -> Layout:
    tokens = output.shape[1]
    # What does not fill a patch is cut off by a convolution, or padded.
    grids = {
        grid
        for patch in range(1, min(image_size) + 1)
        for grid in (
            tuple(size // patch for size in image_size),
            tuple(-(-size // patch) for size in image_size),
        )
        if 0 <= tokens - math.prod(grid) <= MOST_PREFIX
    }
    if grids:
        grid = max(grids, key=math.prod)
        return Layout("tokens", grid, tokens - math.prod(grid))
    size = "×".join(map(str, image_size))
    raise WhycamError(
        f"{tokens} tokens fill no grid of the proportions of a {size} image; "
        "give the layout: whycam.Layout('tokens', grid=(rows, columns), prefix=tokens before the grid)"
    )
