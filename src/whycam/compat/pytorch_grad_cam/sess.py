"""SESS (arXiv:2207.01769): any method on patches of the image at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.cam.methods._masks import blurred
from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam._explainer import Explainer
from whycam.compat.pytorch_grad_cam._passes import Transform, outputs
from whycam.compat.pytorch_grad_cam._scaling import resized, scale
from whycam.compat.pytorch_grad_cam._targets import ImageTarget, predicted
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.compat.pytorch_grad_cam.grad_cam import GradCAM

PatchPlace = tuple[int, int, int, int]
"""A patch's left and top edge, and the width and height of the scaled image it was cut from."""


class SESS(Explainer):
    """Maps of patches, weighted by the patches' scores and joined into one map.

    Args:
        model: the network.
        target_layers: where to look.
        reshape_transform: turns a layer's output into (B, C, …).
        base_method: the class that makes each patch's map.
        scales: sizes that the image's shorter side is brought to; by default ``num_scales`` of them, from the window's
            size on, each larger by ``scale_step_ratio`` of it.
        num_scales: see ``scales``.
        scale_step_ratio: see ``scales``.
        window_size: of the square patches; by default the image's shorter side.
        step_size: from patch to patch; by default they do not overlap.
        pre_filter_ratio: the share of patches with the lowest scores that is left out.
        theta: what is not above it has no part in the mean.
        pool: "mean" or "max" over the patches.
        smooth: blur the result.
        use_softmax_scores: patches are weighted by the target's value on probabilities; False for its raw value.
        batch_size: patches per forward pass.
        **kwargs: more arguments of ``base_method``.

    Raises:
        ValueError: an option has no meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        base_method: Any = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2.0 / 7.0,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        if pool not in ("mean", "max"):
            raise ValueError(f"pool is 'mean' or 'max', got {pool!r}")
        if not 0 <= pre_filter_ratio < 1:
            raise ValueError(f"pre_filter_ratio lies in [0, 1), got {pre_filter_ratio}")
        if num_scales < 1:
            raise ValueError(f"num_scales is at least 1, got {num_scales}")
        self.base_cam: BaseCAM = base_method(model, target_layers, reshape_transform, **kwargs)
        self.model, self.device = self.base_cam.model, self.base_cam.device
        self.scales, self.num_scales, self.scale_step_ratio = scales, num_scales, scale_step_ratio
        self.window_size, self.step_size = window_size, step_size
        self.pre_filter_ratio, self.theta = pre_filter_ratio, theta
        self.pool, self.smooth = pool, smooth
        self.use_softmax_scores, self.batch_size = use_softmax_scores, batch_size

    def forward(
        self, input_tensor: Tensor, targets: Sequence[ImageTarget | None] | None = None, eigen_smooth: bool = False
    ) -> Array:
        """(B, C, H, W) → (B, H, W) float32 on [0, 1].

        Raises:
            ValueError: there are not as many targets as images, or a scale is smaller than the window.
        """
        images = input_tensor.detach().to(self.device)
        chosen = [None] * len(images) if targets is None else list(targets)
        if len(chosen) != len(images):
            raise ValueError(f"{len(chosen)} targets are given for {len(images)} images; give one each")
        cams = [
            self.forward_single_image(image[None], target, eigen_smooth)
            for image, target in zip(images, chosen, strict=True)
        ]
        return scale(torch.from_numpy(np.stack(cams))).numpy()

    def forward_single_image(
        self, input_tensor: Tensor, target: ImageTarget | None, eigen_smooth: bool = False
    ) -> Array:
        """(1, C, H, W) → (H, W), not scaled."""
        height, width = input_tensor.shape[-2:]
        window = min(height, width) if self.window_size is None else self.window_size
        step = window if self.step_size is None else self.step_size
        if target is None:
            target = self.get_target(input_tensor)
        patches, places = self.collect_patches(input_tensor, window, step)
        scores = self.get_scores(patches, target)
        order = np.argsort(scores)[int(len(scores) * self.pre_filter_ratio) :]
        top = scores[order[-1]]
        weights = scores[order] / top if top > 0 else np.ones(len(order), np.float32)
        fusion = _Fusion((height, width), self.pool, self.theta)
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            cams = self.base_cam(torch.cat([patches[i] for i in some]), [target] * len(some), eigen_smooth=eigen_smooth)
            for cam, weight, i in zip(cams, weights[start:], some, strict=False):
                fusion.add(self.paste_cam(cam * weight, places[i], (height, width)))
        cam = fusion.result()
        if not self.smooth:
            return cam
        smooth: Array = blurred(torch.from_numpy(cam).double()[None, None], size=11, sigma=5.0)[0, 0].float().numpy()
        return smooth

    def get_scales(self, window_size: int) -> list[int]:
        """The sizes that the image's shorter side is brought to."""
        if self.scales is not None:
            return list(self.scales)
        step = round(window_size * self.scale_step_ratio)
        return [window_size + step * i for i in range(self.num_scales)]

    def collect_patches(
        self, input_tensor: Tensor, window_size: int, step_size: int
    ) -> tuple[list[Tensor], list[PatchPlace]]:
        """Every scale's patches (1, C, window, window) and where each comes from."""
        patches: list[Tensor] = []
        places: list[PatchPlace] = []
        for size in self.get_scales(window_size):
            if size < window_size:
                raise ValueError(f"the scale {size} is smaller than the window, {window_size}")
            scaled = _shorter_side(input_tensor, size)
            height, width = scaled.shape[-2:]
            for x, y in sliding_window(height, width, step_size, window_size):
                patches.append(scaled[:, :, y : y + window_size, x : x + window_size])
                places.append((x, y, width, height))
        return patches, places

    def get_target(self, input_tensor: Tensor) -> ImageTarget:
        """The predicted class."""
        return predicted(outputs(self.model, input_tensor))[0]

    def get_scores(self, patches: Sequence[Tensor], target: ImageTarget) -> Array:
        """The target's value for every patch, at least 0: (n,)."""
        scores = []
        for start in range(0, len(patches), self.batch_size):
            found = outputs(self.model, torch.cat(list(patches[start : start + self.batch_size])))
            scores.append(target(found.softmax(dim=-1) if self.use_softmax_scores else found))
        values: Array = torch.cat(scores).clamp(min=0).cpu().numpy()
        return values

    def paste_cam(self, cam: Array, coordinates: PatchPlace, target_size: tuple[int, int]) -> Array:
        """A patch's map placed on the whole image, (H, W)."""
        x, y, width, height = coordinates
        whole = torch.zeros(1, height, width)
        whole[0, y : y + cam.shape[0], x : x + cam.shape[1]] = torch.from_numpy(cam)
        pasted: Array = resized(whole, target_size)[0].numpy()
        return pasted

    def _holders(self) -> Sequence[Any]:
        return [self.base_cam]


class _Fusion:
    """Joins the patches' maps, one at a time."""

    def __init__(self, size: tuple[int, int], pool: str, theta: float) -> None:
        self.pool, self.theta = pool, theta
        self.total = np.zeros(size, np.float32)
        self.counts = np.zeros(size, np.float32)

    def add(self, cam: Array) -> None:
        if self.pool == "max":
            np.maximum(self.total, cam, out=self.total)
            return
        counts = cam > self.theta
        self.total += np.where(counts, cam, 0)
        self.counts += counts

    def result(self) -> Array:
        if self.pool == "max":
            return self.total
        return np.divide(self.total, self.counts, out=np.zeros_like(self.total), where=self.counts > 0)


def sliding_window(height: int, width: int, step_size: int, window_size: int) -> list[tuple[int, int]]:
    """The windows' (x, y) corners, row by row; a window that crosses the edge is moved inside."""
    rows, columns = (window_starts(length, step_size, window_size) for length in (height, width))
    return [(x, y) for y in rows for x in columns]


def window_starts(length: int, step_size: int, window_size: int) -> list[int]:
    """Where windows start along one axis."""
    last = max(length - window_size, 0)
    return [*range(0, last, step_size), last]


def _shorter_side(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    if short == size:
        return images
    other = int(size * long / short)
    new = (size, other) if height <= width else (other, size)
    return F.interpolate(images, size=new, mode="bilinear", align_corners=False, antialias=True)
