"""Methods that weigh activations by gradients. A, G: (B, C, h, w); maps are signed, (B, h, w)."""

from __future__ import annotations

import torch
from torch import Tensor

from whycam.cam.methods.registry import LayerTrace, method


@method("Grad-CAM", paper="Selvaraju et al., 2017, arXiv:1610.02391")
def gradcam(trace: LayerTrace) -> Tensor:
    """Activations weighed by each channel's mean gradient: Σ_c mean_p(G_c) · A_c."""
    weights = trace.gradients.mean(dim=(2, 3))
    return torch.einsum("bchw,bc->bhw", trace.activations, weights)


@method("HiResCAM", paper="Draelos & Carin, 2020, arXiv:2011.08891")
def hirescam(trace: LayerTrace) -> Tensor:
    """Activations times gradients, position by position: Σ_c G_c · A_c; sums to what the layer contributes."""
    return (trace.gradients * trace.activations).sum(dim=1)
