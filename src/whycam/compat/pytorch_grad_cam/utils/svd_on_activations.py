"""Principal components of a layer's positions, with the signs that grad-cam's numbers have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.device import in_double
from whycam.errors import WhycamError

Kernel = str | Callable[[Array, Array], float]


def get_2d_projection(activation_batch: Array) -> Array:
    """(B, C, …) → (B, …) float32: the centered positions on their first right singular vector.

    The sign is whichever LAPACK gives, which may differ between machines; NaN counts as 0.
    """
    return project(torch.from_numpy(activation_batch)).numpy()


def get_2d_projection_kernel(activation_batch: Array, kernel: Kernel = "sigmoid", gamma: float | None = None) -> Array:
    """(B, C, …) → (B, …) float32: the first component of a kernel PCA; NaN counts as 0.

    Args:
        activation_batch: (B, C, …).
        kernel: "linear", "poly", "rbf", "sigmoid", "cosine", or a function of two vectors.
        gamma: the kernel's scale; 1 / C where None.
    """
    return project_kernel(torch.from_numpy(activation_batch), kernel, gamma).numpy()


def get_2d_projection_with_sign_correction(activation_batch: Array) -> Array:
    """`get_2d_projection`, the value largest in size made positive."""
    return project_positive(torch.from_numpy(activation_batch)).numpy()


def project(activations: Tensor) -> Tensor:
    """`get_2d_projection` of a tensor, on its device."""
    finite = torch.where(activations.isnan(), 0, activations)
    # The sign is LAPACK's, and it may flip with the last bit of its input. So this uses numpy's mean and decomposition,
    # as grad-cam does. The reduced decomposition has the same first vector as grad-cam's full one.
    x = finite.flatten(2).contiguous().cpu().numpy().swapaxes(1, 2)
    x = x - x.mean(axis=1, keepdims=True)
    first = np.linalg.svd(x, full_matrices=False)[2][:, 0]
    projected = torch.from_numpy(np.einsum("bpc,bc->bp", x, first)).to(activations.device)
    return projected.reshape(len(x), *activations.shape[2:]).float()


def project_positive(activations: Tensor) -> Tensor:
    """`get_2d_projection_with_sign_correction` of a tensor, on its device."""
    x = in_double(_centered(activations))
    if x.shape[1] < x.shape[2]:
        values, vectors = torch.linalg.eigh(x @ x.transpose(1, 2))
        projected = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(x.transpose(1, 2) @ x)
        projected = (x @ vectors[:, :, -1:])[:, :, 0]
    flip = projected.amin(dim=1).abs() > projected.amax(dim=1).abs()
    projected = torch.where(flip[:, None], -projected, projected)
    return projected.reshape(len(x), *activations.shape[2:]).to(activations.device, torch.float32)


def project_kernel(activations: Tensor, kernel: Kernel = "sigmoid", gamma: float | None = None) -> Tensor:
    """`get_2d_projection_kernel` of a tensor, on its device."""
    x = in_double(_centered(activations))
    k = _kernel(x, kernel, 1 / x.shape[2] if gamma is None else gamma)
    k = k - k.mean(dim=1, keepdim=True) - k.mean(dim=2, keepdim=True) + k.mean(dim=(1, 2), keepdim=True)
    values, vectors = torch.linalg.eigh(k)
    component = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    largest = component.gather(1, component.abs().argmax(dim=1, keepdim=True))
    component = component * torch.where(largest < 0, -1.0, 1.0)
    result: Tensor = component.reshape(len(x), *activations.shape[2:]).to(activations.device, torch.float32)
    return result


def _kernel(x: Tensor, kernel: Kernel, gamma: float) -> Tensor:
    if callable(kernel):
        return torch.stack([_pairwise(image, kernel) for image in x.cpu().numpy()]).to(x)
    products = x @ x.transpose(1, 2)
    if kernel == "linear":
        return products
    if kernel == "poly":
        return (gamma * products + 1).pow(3)
    if kernel == "sigmoid":
        return (gamma * products + 1).tanh()
    squares = products.diagonal(dim1=1, dim2=2)
    if kernel == "rbf":
        return torch.exp(-gamma * (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0))
    if kernel == "cosine":
        norms = squares.sqrt()
        norms = torch.where(norms > 0, norms, 1)
        return products / (norms[:, :, None] * norms[:, None])
    raise WhycamError(f"unknown kernel {kernel!r}; there are linear, poly, rbf, sigmoid, cosine, or give a function")


def _pairwise(rows: Array, kernel: Callable[[Array, Array], Any]) -> Tensor:
    return torch.tensor([[float(kernel(one, other)) for other in rows] for one in rows], dtype=torch.float64)


def _centered(activations: Tensor) -> Tensor:
    """(B, C, …) → (B, positions, C) with each channel's mean taken off."""
    x = torch.where(activations.isnan(), 0, activations).flatten(2).transpose(1, 2)
    return x - x.mean(dim=1, keepdim=True)
