"""Controls: maps that ignore the network's decision. A method has to beat them to show anything."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from whycam.cam.methods.gradient import weighted
from whycam.cam.methods.registry import method
from whycam.cam.passes.trace import LayerTrace
from whycam.options import Range


@method("Random", paper="control: random channel weights", needs=())
def random(trace: LayerTrace) -> Tensor:
    """Activations weighted at random, uniformly from −1 to 1: a map that ignores the class."""
    channels = trace.activations.shape[1]
    draw = trace.network.generator("random", trace.layer)
    weights = 2 * torch.rand(channels, generator=draw, dtype=torch.float64) - 1
    return weighted(trace.activations, weights.to(trace.activations).expand(len(trace.activations), -1))


@method("Sobel", paper="control: Sobel & Feldman, 1968", needs=(), scope="input")
def sobel(trace: LayerTrace) -> Tensor:
    """The image's edges (gradient magnitude of its gray values): a map that ignores the network."""
    gray = trace.activations.mean(dim=1)
    axes = range(1, gray.ndim)
    total = torch.zeros_like(gray)
    for along in axes:
        part = gray
        for axis in axes:
            before, after = _neighbors(part, axis)
            part = after - before if axis == along else before + 2 * part + after
        total += part.square()
    return total.sqrt()


def _neighbors(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The values one step before and after along an axis; at the border, the border's own value."""
    size = values.shape[axis]
    first, last = values.narrow(axis, 0, 1), values.narrow(axis, size - 1, 1)
    before = torch.cat([first, values.narrow(axis, 0, size - 1)], dim=axis)
    return before, torch.cat([values.narrow(axis, 1, size - 1), last], dim=axis)


@method("Center", paper="control: a Gaussian at the image center", needs=(), scope="input")
def center(trace: LayerTrace, sigma: Annotated[float, Range(0, without_low=True)] = 0.25) -> Tensor:
    """A Gaussian at the image center, σ in image sides: most subjects are centered, so this control scores well."""
    images = trace.activations
    result = images.new_ones(1)
    for size in images.shape[2:]:
        position = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size - 0.5
        result = result[..., None] * torch.exp(-(position**2) / (2 * sigma**2))
    return result.expand(len(images), *images.shape[2:]).clone()
