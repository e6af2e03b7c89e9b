"""The table of CAM classes: where each is imported from, what it computes, which passes it needs.

A row is a class statement, so type checkers, pickle and ``help`` see an ordinary class. Its keywords are its entries,
which `FormulaCAM` reads. Each ``path`` is a two-line module beside this one, which hands its class on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.cam.methods._masks import score_pairs
from whycam.compat.pytorch_grad_cam._arrays import on_device
from whycam.compat.pytorch_grad_cam._passes import Transform, score
from whycam.compat.pytorch_grad_cam._targets import ImageTarget
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM, combined
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import Kernel, project, project_kernel, project_positive
from whycam.seeds import generator


@dataclass(frozen=True)
class LayerView:
    """What a formula sees of one layer.

    Attributes:
        cam: the object that is called; its options are its attributes.
        images: (B, C, H, W), or (B, C, D, H, W).
        layer: the layer.
        targets: one per image.
        a: its activations, (B, C, …positions).
        g: their gradients; None where the class uses none.
    """

    cam: Any
    images: Tensor
    layer: nn.Module
    targets: Sequence[ImageTarget]
    a: Tensor
    g: Tensor


Formula = Callable[[LayerView], Tensor]


class FormulaCAM(BaseCAM):
    """The constructor that the rows share, and the method that a row's formula becomes.

    A row's keywords:

    * ``path``: the module that grad-cam has the class in.
    * ``weights``: the formula of ``get_cam_weights``: one weight per channel, (B, C).
    * ``terms``: the formula of ``get_cam_image``: (B, C, …positions), added up over channels, or projected on their
      first principal component where ``eigen_smooth`` is asked for.
    * ``image``: the same for a map (B, …positions) that is no such sum.
    * ``gradients``: whether there is a backward pass.
    * ``curvature``: whether there is a second one.

    A subclass without ``path`` is a user's own class: it stays in its own module and inherits the passes.
    """

    _gradients = True

    def __init_subclass__(
        cls,
        *,
        path: str = "",
        weights: Formula | None = None,
        terms: Formula | None = None,
        image: Formula | None = None,
        gradients: bool = True,
        curvature: bool = False,
    ) -> None:
        super().__init_subclass__()
        if path:
            # Pickles name the public path, not this module.
            cls.__module__ = f"{__package__}.{path}"
            cls._gradients, cls._curvature = gradients, curvature
        if weights is not None:
            cls.get_cam_weights = _weights_method(weights)  # type: ignore[method-assign]
        if terms is not None:
            cls.get_cam_image = _image_method(terms, combined)  # type: ignore[method-assign]
        if image is not None:
            cls.get_cam_image = _image_method(image)  # type: ignore[method-assign]

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Transform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, self._curvature, self._gradients)


def _weights_method(formula: Formula) -> Callable[..., Any]:
    @on_device
    def get_cam_weights(
        self: BaseCAM,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Tensor,
        grads: Tensor,
    ) -> Tensor:
        """(B, C)."""
        return formula(LayerView(self, input_tensor, target_layer, targets, activations, grads))

    return get_cam_weights


def _image_method(formula: Formula, join: Callable[[Tensor, bool], Tensor] | None = None) -> Callable[..., Any]:
    @on_device
    def get_cam_image(
        self: BaseCAM,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Tensor,
        grads: Tensor,
        eigen_smooth: bool = False,
    ) -> Tensor:
        """(B, …positions), signed."""
        found = formula(LayerView(self, input_tensor, target_layer, targets, activations, grads))
        return found if join is None else join(found, eigen_smooth)

    return get_cam_image


class GradCAM(FormulaCAM, path="grad_cam", weights=lambda v: v.g.flatten(2).mean(dim=2)):
    """Grad-CAM (arXiv:1610.02391): channels weighted by their mean gradient."""


class HiResCAM(FormulaCAM, path="hirescam", terms=lambda v: v.g * v.a):
    """HiResCAM (arXiv:2011.08891): gradients times activations; with ``eigen_smooth`` its faithfulness is lost."""


class GradCAMElementWise(FormulaCAM, path="grad_cam_elementwise", terms=lambda v: (v.g * v.a).relu()):
    """Grad-CAM, element by element: the positive part of gradients times activations."""


class LayerCAM(FormulaCAM, path="layer_cam", terms=lambda v: v.g.relu() * v.a):
    """LayerCAM (Jiang et al., 2021, IEEE TIP 30:5875): activations weighted by their own positive gradients."""


class EigenCAM(FormulaCAM, path="eigen_cam", image=lambda v: project(v.a), gradients=False):
    """Eigen-CAM (arXiv:2008.00299): the activations' first principal component; no gradients, no target."""


class EigenGradCAM(FormulaCAM, path="eigen_grad_cam", image=lambda v: project(v.g * v.a)):
    """EigenGrad-CAM, Eigen-CAM with the class: the first principal component of gradients times activations."""


class SegEigenCAM(FormulaCAM, path="seg_eigen_cam", image=lambda v: project_positive(v.g.abs() * v.a)):
    """SegEigen-CAM (Applied Sciences 15:7562, 2025): the first component of |G|·A, its largest value made positive."""


def _total(tensor: Tensor) -> Tensor:
    """Σ over positions: (B, C, …) → (B, C, 1, …)."""
    return tensor.sum(dim=tuple(range(2, tensor.ndim)), keepdim=True)


def _gradcam_plus_plus(v: LayerView) -> Tensor:
    squares = v.g**2
    alpha = squares / (2 * squares + _total(v.a) * squares * v.g + 1e-6)
    return _total(v.g.relu() * torch.where(v.g != 0, alpha, 0)).flatten(1)


class GradCAMPlusPlus(FormulaCAM, path="grad_cam_plusplus", weights=_gradcam_plus_plus):
    """Grad-CAM++ (arXiv:1710.11063): positive gradients weighted by G² / (2G² + G³ · Σ A + 1e-6)."""


def _xgradcam(v: LayerView) -> Tensor:
    return _total(v.g * v.a / (_total(v.a) + 1e-7)).flatten(1)


class XGradCAM(FormulaCAM, path="xgrad_cam", weights=_xgradcam):
    """XGrad-CAM (arXiv:2008.02312): channels weighted by Σ G·A / (Σ A + 1e-7)."""


def _shapleycam(v: LayerView) -> Tensor:
    place = next(place for place, layer in enumerate(v.cam.target_layers) if layer is v.layer)
    curvature: Tensor = v.cam.activations_and_grads.curvature_at(place)
    return (v.g - 0.5 * curvature).flatten(2).mean(dim=2)


class ShapleyCAM(FormulaCAM, path="shapley_cam", weights=_shapleycam, curvature=True):
    """Shapley-CAM (arXiv:2501.06261): channels weighted by the mean of G − ½ H·A.

    For the paper's own target give ``ClassifierOutputReST``.
    """


def _random(v: LayerView) -> Tensor:
    places = [place for place, layer in enumerate(v.cam.target_layers) if layer is v.layer]
    draw = generator(v.cam.seed, "RandomCAM", *places)
    return 2 * torch.rand(v.a.shape[:2], generator=draw).to(v.a) - 1


class RandomCAM(FormulaCAM, path="random_cam", weights=_random, gradients=False):
    """A control: channels weighed uniformly at random from −1 to 1.

    ``seed`` decides which weights are drawn; grad-cam draws them from global state.
    """


def _scorecam(v: LayerView) -> Tensor:
    flat = v.a.flatten(2)
    alive = flat.amax(dim=2) > flat.amin(dim=2)

    def empty(rows: Tensor, _channels: Tensor) -> Tensor:
        return score(v.cam.model, torch.zeros_like(v.images[rows]), [v.targets[row] for row in rows.tolist()])

    def masked(rows: Tensor, channels: Tensor) -> Tensor:
        masks = _masks(v.a[rows, channels][:, None], v.images.shape[2:]).to(v.images.dtype)
        return score(v.cam.model, v.images[rows] * masks, [v.targets[row] for row in rows.tolist()])

    like, size = v.a.new_empty(0, dtype=torch.float32), v.cam.batch_size
    scores = score_pairs(alive, size, masked, like)
    # The mask of a constant channel is 0 everywhere: score the empty image once.
    blank = score_pairs(~alive.all(dim=1, keepdim=True), size, empty, like)
    return torch.where(alive, scores, blank).softmax(dim=1)


def _masks(channels: Tensor, size: Sequence[int]) -> Tensor:
    """(n, 1, …) activations → (n, 1, *size) on [0, 1]."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[channels.ndim]
    masks = F.interpolate(channels, size=tuple(size), mode=mode, align_corners=True)
    shape = (-1, *[1] * (masks.ndim - 1))
    low, high = masks.flatten(1).amin(dim=1).view(shape), masks.flatten(1).amax(dim=1).view(shape)
    return (masks - low) / (high - low + 1e-8)


class ScoreCAM(FormulaCAM, path="score_cam", weights=_scorecam, gradients=False):
    """Score-CAM (arXiv:1910.01279): channels weighted by the softmax of the image's scores where they are active.

    Set ``batch_size`` for the number of masked images in one forward pass.
    """

    batch_size = 32


def _kpca(v: LayerView) -> Tensor:
    return project_kernel(v.a, v.cam.kernel, v.cam.gamma)


class KPCA_CAM(FormulaCAM, path="kpca_cam", image=_kpca, gradients=False):
    """KPCA-CAM (arXiv:2410.00267): the first component of a kernel PCA of the activations; no gradients, no target."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        kernel: Kernel = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.kernel, self.gamma = kernel, gamma


def _fem(v: LayerView) -> Tensor:
    flat = v.a.flatten(2)
    k: float = v.cam.k
    bound = flat.mean(dim=2, keepdim=True) + k * flat.std(dim=2, unbiased=False, keepdim=True)
    weights = (flat > bound).to(flat.dtype).mean(dim=2, keepdim=True)
    return (weights * flat).sum(dim=1).reshape(len(flat), *v.a.shape[2:])


class FEM(FormulaCAM, path="fem", image=_fem, gradients=False):
    """FEM (Ahmed Asif Fuad et al., 2020): channels weighted by the share of positions k deviations above their mean."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.k = k
