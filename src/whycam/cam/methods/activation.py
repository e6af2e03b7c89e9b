"""Methods that read activations alone or project them on their main axis. A: (B, C, …positions).

A principal axis has no sign of its own. Here it is the one for which the map correlates with a reference: the sum over
channels of what was projected, so that more of it is brighter; where that correlation is 0, or the sum but rounding (as
behind a LayerNorm without a gain of its own), the value that is largest in size is positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whycam.cam.maps import finite
from whycam.cam.methods.gradient import spread, weighted
from whycam.cam.methods.registry import method
from whycam.cam.passes.trace import LayerTrace
from whycam.device import in_double


def main_axis(features: Tensor) -> Tensor:
    """The positions' coordinates on the first principal axis: (B, C, …) → (B, …), sign undetermined.

    Per image X is positions × channels. The axis is that of the column-centered X, and X itself is projected on it,
    uncentred, as Eigen-CAM's authors have it. Computed from the smaller Gram matrix, in float64: squaring X squares
    its condition.
    """
    x = in_double(features.flatten(2).transpose(1, 2))
    centered = x - x.mean(dim=1, keepdim=True)
    if x.shape[1] < x.shape[2]:
        axis = torch.einsum("bpc,bp->bc", centered, leading_eigenvector(centered @ centered.transpose(1, 2)))
        axis = axis / axis.norm(dim=1, keepdim=True).clamp(min=torch.finfo(axis.dtype).tiny)
    else:
        axis = leading_eigenvector(centered.transpose(1, 2) @ centered)
    projected = torch.einsum("bpc,bc->bp", x, axis)
    return projected.reshape(-1, *features.shape[2:]).to(features)


def leading_eigenvector(gram: Tensor, squarings: int = 3, steps: int = 16, rounds: int = 6) -> Tensor:
    """The unit eigenvector of the largest eigenvalue of positive semidefinite matrices, (B, n, n) float64 → (B, n).

    Power iteration with a power: squaring a matrix squares the ratio of its eigenvalues, and a step with the eighth
    power costs no more than one with the matrix itself, so a few suffice, several times faster than a full
    decomposition. An image goes on, each round with the fourth power of the last round's, until its residual shows
    convergence; where the first two eigenvalues are too close for that, the full decomposition decides.
    """
    power = _raised(gram / _trace(gram).clamp(min=torch.finfo(gram.dtype).tiny), squarings)
    # A vector like no other: a column, say, might lie in another axis's space and never leave it.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, gram.shape[1], generator=generator, dtype=gram.dtype)
    vector = start.to(gram.device).expand(len(gram), -1)
    found = torch.empty_like(vector, memory_format=torch.contiguous_format)
    left, matrix = torch.arange(len(gram), device=gram.device), gram
    for _ in range(rounds):
        for _ in range(steps):
            vector = _times(power, vector)
        vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
        found[left] = vector
        image = _times(matrix, vector)
        value = (image * vector).sum(dim=1, keepdim=True)
        # The one thing in a round that a GPU has to be waited for.
        close = ((image - value * vector).norm(dim=1) > 1e-12 * value[:, 0]).nonzero()[:, 0]
        if not len(close):
            return found
        left, matrix, vector = left[close], matrix[close], vector[close]
        power = _raised(power[close], 2)
    found[left] = torch.linalg.eigh(matrix).eigenvectors[:, :, -1]
    return found


def _raised(matrices: Tensor, squarings: int) -> Tensor:
    """A positive multiple of a power of each matrix, its trace 1 so that it neither vanishes nor overflows."""
    for _ in range(squarings):
        matrices = matrices @ matrices
        matrices.div_(_trace(matrices).clamp(min=torch.finfo(matrices.dtype).tiny))
    return matrices


def _times(symmetric: Tensor, vectors: Tensor) -> Tensor:
    """(B, n, n), (B, n) → (B, n): as a sum along rows, which is quicker here than a batched product with a vector."""
    return (symmetric * vectors[:, None]).sum(dim=2)


def _trace(matrices: Tensor) -> Tensor:
    trace: Tensor = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
    return trace[:, None, None]


def signed(maps: Tensor, reference: Tensor) -> Tensor:
    """``maps`` (B, …) or its negative, image by image: whichever correlates with ``reference`` (B, …)."""
    flat, against = maps.flatten(1), reference.flatten(1)
    agreement = ((flat - flat.mean(dim=1, keepdim=True)) * (against - against.mean(dim=1, keepdim=True))).sum(dim=1)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
    sign = torch.where(agreement != 0, agreement.sign(), torch.where(largest < 0, -1.0, 1.0).to(agreement))
    return maps * sign.view(-1, *[1] * (maps.ndim - 1))


def _if_finite(decompose: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """``decompose(features)``, and NaN for images whose features are not all finite: it would hide that, or fail."""
    # A sum is finite only if everything in it is, and cheaper than to look at everything.
    if bool(features.sum().isfinite()):
        return decompose(features)
    whole = finite(features)
    maps = decompose(features.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    return torch.where(whole.view(-1, *[1] * (maps.ndim - 1)), maps, torch.nan)


def principal_map(features: Tensor) -> Tensor:
    """The first principal component, its sign fixed by the sum over channels: (B, C, …) → (B, …)."""
    reference = features.sum(dim=1)
    # Where channels add up to zero, what is left is rounding, which another batch or device does otherwise.
    rounding = 64 * torch.finfo(features.dtype).eps * features.shape[1] ** 0.5
    size = torch.linalg.vector_norm(features.flatten(1), dim=1) * rounding
    known = torch.linalg.vector_norm(reference.flatten(1), dim=1) > size
    return signed(_if_finite(main_axis, features), reference * known.view(-1, *[1] * (reference.ndim - 1)))


@method("Eigen-CAM", paper="Muhammad & Yeasin, 2020, arXiv:2008.00299", needs=())
def eigencam(trace: LayerTrace) -> Tensor:
    """The activations' first principal component; the same for every class."""
    return principal_map(trace.activations)


@method("EigenGrad-CAM", paper="Gildenblat et al., pytorch-grad-cam, 2021")
def eigengradcam(trace: LayerTrace) -> Tensor:
    """The first principal component of activations times gradients: Eigen-CAM that knows the class."""
    return principal_map(trace.gradients * trace.activations)


@method("SegEigen-CAM", paper="Chung & Ying, 2025, Applied Sciences 15(13):7562")
def segeigencam(trace: LayerTrace) -> Tensor:
    """The first principal component of |gradients| times activations, its largest value made positive."""
    component = _if_finite(main_axis, trace.gradients.abs() * trace.activations)
    flat = component.flatten(1)
    flip = flat.amin(dim=1).abs() > flat.amax(dim=1).abs()
    return torch.where(flip.view(-1, *[1] * (component.ndim - 1)), -component, component)


@method("KPCA-CAM", paper="Karmani et al., 2024, arXiv:2410.00267", needs=())
def kpcacam(trace: LayerTrace, gamma: float | None = None) -> Tensor:
    """The first component of a kernel PCA of the positions, kernel tanh(γ·x·y + 1), γ = 1 / C; class-agnostic."""

    def component(features: Tensor) -> Tensor:
        x = in_double(features.flatten(2).transpose(1, 2))
        x = x - x.mean(dim=1, keepdim=True)
        kernel = torch.tanh((1 / x.shape[2] if gamma is None else gamma) * (x @ x.transpose(1, 2)) + 1)
        kernel = (
            kernel
            - kernel.mean(dim=1, keepdim=True)
            - kernel.mean(dim=2, keepdim=True)
            + kernel.mean(dim=(1, 2), keepdim=True)
        )
        values, vectors = torch.linalg.eigh(kernel)
        # The kernel of a layer that is the same everywhere is zero but for rounding, and so is its component.
        rounding = kernel.shape[1] * torch.finfo(kernel.dtype).eps
        first = vectors[:, :, -1] * torch.where(values[:, -1:] > rounding, values[:, -1:], 0).sqrt()
        largest = first.gather(1, first.abs().argmax(dim=1, keepdim=True))
        first = first * torch.where(largest < 0, -1.0, 1.0)
        maps: Tensor = first.reshape(-1, *features.shape[2:]).to(features)
        return maps

    return _if_finite(component, trace.activations)


@method("FEM", paper="Fuad et al., 2020, IPTA, doi:10.1109/IPTA50016.2020.9286629", needs=())
def fem(trace: LayerTrace, k: float = 2.0) -> Tensor:
    """Where channels are unusually active: Σ_c mean_p(A_c) · 1[A_c ≥ mean + k·sd]; the same for every class."""
    flat = trace.activations.flatten(2)
    mean = flat.mean(dim=2)
    bound = mean + k * (flat - mean[:, :, None]).square().mean(dim=2).sqrt()
    return weighted((trace.activations >= spread(bound, trace.activations)).to(mean.dtype), mean)
