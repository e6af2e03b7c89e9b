"""Methods that read the activations alone or project them on their first principal axis. A: (B, C, …positions).

The sign of a principal axis is not determined. Here the sign is chosen so that the map correlates positively with a
reference, the sum over channels of the projected tensor: stronger activation is brighter. If that correlation is 0, or
the reference is only rounding error (after a LayerNorm without a learned gain), the value of largest magnitude is
positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whycam.cam.maps import finite
from whycam.cam.methods.gradient import append_axes, weighted
from whycam.cam.methods.registry import method
from whycam.cam.passes.trace import LayerTrace
from whycam.device import in_double


def principal_projection(features: Tensor) -> Tensor:
    """The positions' coordinates on the first principal axis: (B, C, …) → (B, …), sign undetermined.

    X is the matrix positions × channels of one image. The axis is that of the column-centered X; X itself, not
    centered, is projected on it, as in the code of Eigen-CAM's authors. The axis is computed from the smaller of the
    two Gram matrices, in float64, because a Gram matrix has the squared condition number of X.
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

    Power iteration with powers of the matrix: squaring a matrix squares the ratios of its eigenvalues, and a step with
    the eighth power costs as much as one with the matrix itself. So a few steps suffice, which is several times faster
    than a full decomposition. Each round raises the matrices to the fourth power, and goes on with those images whose
    residual has not converged. If the first two eigenvalues are too close for convergence, the full decomposition is
    used.
    """
    power = _raised(gram / _trace(gram).clamp(min=torch.finfo(gram.dtype).tiny), squarings)
    # A random vector: a column of the matrix could be orthogonal to the first eigenvector, and would stay so.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, gram.shape[1], generator=generator, dtype=gram.dtype)
    vector = start.to(gram.device).expand(len(gram), -1)
    found = torch.empty_like(vector, memory_format=torch.contiguous_format)
    remaining, matrix = torch.arange(len(gram), device=gram.device), gram
    for _ in range(rounds):
        for _ in range(steps):
            vector = _times(power, vector)
        vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
        found[remaining] = vector
        product = _times(matrix, vector)
        eigenvalue = (product * vector).sum(dim=1, keepdim=True)
        # `nonzero` is the only synchronization with a GPU in a round.
        residual = (product - eigenvalue * vector).norm(dim=1)
        not_converged = (residual > 1e-12 * eigenvalue[:, 0]).nonzero()[:, 0]
        if not len(not_converged):
            return found
        remaining, matrix, vector = remaining[not_converged], matrix[not_converged], vector[not_converged]
        power = _raised(power[not_converged], 2)
    found[remaining] = torch.linalg.eigh(matrix).eigenvectors[:, :, -1]
    return found


def _raised(matrices: Tensor, squarings: int) -> Tensor:
    """Square each matrix ``squarings`` times, scaled to trace 1 each time so that it neither vanishes nor overflows."""
    for _ in range(squarings):
        matrices = matrices @ matrices
        matrices.div_(_trace(matrices).clamp(min=torch.finfo(matrices.dtype).tiny))
    return matrices


def _times(symmetric: Tensor, vectors: Tensor) -> Tensor:
    """(B, n, n), (B, n) → (B, n): as a sum along rows, which is faster here than a batched matrix-vector product."""
    return (symmetric * vectors[:, None]).sum(dim=2)


def _trace(matrices: Tensor) -> Tensor:
    trace: Tensor = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
    return trace[:, None, None]


def with_sign_of(maps: Tensor, reference: Tensor) -> Tensor:
    """``maps`` (B, …), each with the sign that makes it correlate positively with ``reference`` (B, …)."""
    x, y = maps.flatten(1), reference.flatten(1)
    covariance = ((x - x.mean(dim=1, keepdim=True)) * (y - y.mean(dim=1, keepdim=True))).sum(dim=1)
    largest = x.gather(1, x.abs().argmax(dim=1, keepdim=True))[:, 0]
    sign = torch.where(covariance != 0, covariance.sign(), torch.where(largest < 0, -1.0, 1.0).to(covariance))
    return maps * sign.view(-1, *[1] * (maps.ndim - 1))


def _if_finite(decompose: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """``decompose(features)``, with NaN for images that have a non-finite feature, which a decomposition would hide."""
    # A sum is finite only if every term is; this is cheaper than to check every term.
    if bool(features.sum().isfinite()):
        return decompose(features)
    is_finite = finite(features)
    maps = decompose(features.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    return torch.where(is_finite.view(-1, *[1] * (maps.ndim - 1)), maps, torch.nan)


def principal_map(features: Tensor) -> Tensor:
    """The first principal component, its sign fixed by the sum over channels: (B, C, …) → (B, …)."""
    reference = features.sum(dim=1)
    # If the channels sum to zero, the reference is only rounding error, which differs between batches and devices.
    rounding = 64 * torch.finfo(features.dtype).eps * features.shape[1] ** 0.5
    bound = torch.linalg.vector_norm(features.flatten(1), dim=1) * rounding
    usable = torch.linalg.vector_norm(reference.flatten(1), dim=1) > bound
    return with_sign_of(
        _if_finite(principal_projection, features), reference * usable.view(-1, *[1] * (reference.ndim - 1))
    )


@method("Eigen-CAM", paper="Muhammad & Yeasin, 2020, arXiv:2008.00299", needs=())
def eigencam(trace: LayerTrace) -> Tensor:
    """The activations' first principal component; the same for every class."""
    return principal_map(trace.activations)


@method("EigenGrad-CAM", paper="Gildenblat et al., pytorch-grad-cam, 2021")
def eigengradcam(trace: LayerTrace) -> Tensor:
    """The first principal component of activations times gradients: a class-specific Eigen-CAM."""
    return principal_map(trace.gradients * trace.activations)


@method("SegEigen-CAM", paper="Chung & Ying, 2025, Applied Sciences 15(13):7562")
def segeigencam(trace: LayerTrace) -> Tensor:
    """The first principal component of |gradients| times activations, its largest value made positive."""
    component = _if_finite(principal_projection, trace.gradients.abs() * trace.activations)
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
        # The kernel of a constant layer is zero except for rounding errors, and its component must be 0 too.
        rounding = kernel.shape[1] * torch.finfo(kernel.dtype).eps
        first = vectors[:, :, -1] * torch.where(values[:, -1:] > rounding, values[:, -1:], 0).sqrt()
        largest = first.gather(1, first.abs().argmax(dim=1, keepdim=True))
        first = first * torch.where(largest < 0, -1.0, 1.0)
        maps: Tensor = first.reshape(-1, *features.shape[2:]).to(features)
        return maps

    return _if_finite(component, trace.activations)


@method("FEM", paper="Fuad et al., 2020, IPTA, doi:10.1109/IPTA50016.2020.9286629", needs=())
def fem(trace: LayerTrace, k: float = 2.0) -> Tensor:
    """Positions with unusually active channels: Σ_c mean_p(A_c) · 1[A_c ≥ mean + k·sd]; the same for every class."""
    flat = trace.activations.flatten(2)
    mean = flat.mean(dim=2)
    bound = mean + k * (flat - mean[:, :, None]).square().mean(dim=2).sqrt()
    return weighted((trace.activations >= append_axes(bound, trace.activations)).to(mean.dtype), mean)
