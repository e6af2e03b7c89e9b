"""Pixel-level methods: gradients of the score with respect to the image, at its own resolution, (B, H, W).

Signed values are summed over the color channels. They say how the score changes with a pixel, not where an object is.
Next to a class activation map they show which edges the map depends on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.maps import resize
from whycam.cam.methods.gradient import gradcam
from whycam.cam.methods.registry import method
from whycam.cam.passes.trace import LayerTrace
from whycam.options import Count, Deviation


def _gradient(trace: LayerTrace, images: Tensor, rows: Tensor | None = None, *, guided: bool = False) -> Tensor:
    rows = torch.arange(len(images)) if rows is None else rows
    dtype = trace.network.images.dtype
    gradient = trace.network.image_gradient(images.to(dtype), rows, trace.target, guided=guided)
    return gradient.to(trace.activations.dtype)


@method("Input gradient", paper="Simonyan et al., 2013, arXiv:1312.6034", needs=("reruns",), scope="input")
def inputgradient(trace: LayerTrace) -> Tensor:
    """The score's gradient with respect to the pixels, summed over colors."""
    return _gradient(trace, trace.activations).sum(dim=1)


@method("Guided backprop", paper="Springenberg et al., 2014, arXiv:1412.6806", needs=("reruns",), scope="input")
def guidedbackprop(trace: LayerTrace) -> Tensor:
    """The input gradient with negative gradients set to 0 at every ReLU; sharp, but nearly the same for random weights.

    It fails the parameter randomization test (Adebayo et al., 2018, arXiv:1810.03292): it shows the image's edges
    rather than the parts that the score depends on.
    """
    return _gradient(trace, trace.activations, guided=True).sum(dim=1)


@method("Guided Grad-CAM", paper="Selvaraju et al., 2017, arXiv:1610.02391", needs=("gradients", "reruns"))
def guidedgradcam(trace: LayerTrace) -> Tensor:
    """Guided backprop times the upsampled positive Grad-CAM; like guided backprop, it hardly depends on the weights."""
    images = trace.network.images
    sharp = _gradient(trace, images, guided=True).sum(dim=1)
    return sharp * resize(gradcam.function(trace).relu(), images.shape[2:])


@method("Integrated gradients", paper="Sundararajan et al., 2017, arXiv:1703.01365", needs=("reruns",), scope="input")
def integratedgradients(trace: LayerTrace, steps: Count = 32, baseline: float = 0.0) -> Tensor:
    """Gradients averaged on the line from a baseline to the image, times their difference; sums to the score's change.

    ``steps`` midpoints of the line are used. ``baseline`` is in the network's input units, in which 0 is usually the
    data set's mean color.
    """
    images = trace.activations
    rows = torch.arange(len(images))
    total = torch.zeros_like(images)
    for step in range(steps):
        total += _gradient(trace, baseline + (step + 0.5) / steps * (images - baseline), rows)
    return ((images - baseline) * total / steps).sum(dim=1)


@method("SmoothGrad", paper="Smilkov et al., 2017, arXiv:1706.03825", needs=("reruns",), scope="input")
def smoothgrad(trace: LayerTrace, n: Count = 16, sigma: Deviation = 0.15) -> Tensor:
    """The input gradient averaged over n noisy copies; σ in units of each image's own range."""
    images = trace.activations
    flat = images.flatten(1)
    noise_scale = (sigma * (flat.amax(dim=1) - flat.amin(dim=1))).view(-1, *[1] * (images.ndim - 1))
    draw = trace.network.generator("smoothgrad", n)
    rows, total = torch.arange(len(images)), torch.zeros_like(images)
    for _ in range(n):
        # All images get the same noise, so that a map does not depend on the other images of the batch.
        noise = torch.randn(images.shape[1:], generator=draw, dtype=torch.float32).to(images)
        total += _gradient(trace, images + noise_scale * noise, rows)
    return (total / n).sum(dim=1)
