"""The base of all classes: one pass for all layers, the subclass's map, grad-cam's post-processing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array, on_device, takes_tensors, to_numpy, to_tensor
from whycam.compat.pytorch_grad_cam._augment import AUGMENTATIONS
from whycam.compat.pytorch_grad_cam._explainer import Explainer
from whycam.compat.pytorch_grad_cam._passes import Seen, Transform
from whycam.compat.pytorch_grad_cam._scaling import scale
from whycam.compat.pytorch_grad_cam._targets import ImageTarget, ImageTargets, check_count
from whycam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from whycam.compat.pytorch_grad_cam.utils.svd_on_activations import project
from whycam.errors import WhycamError
from whycam.nn_utils import unwrapped

Targets = Sequence[ImageTarget] | ImageTargets | None


class BaseCAM(Explainer):
    """The base of every class: override `get_cam_weights` (a weight per channel) or `get_cam_image` (a map).

    Overrides are handed numpy arrays and may return them. The model is afterwards exactly as it was, mode, ``.grad``
    and hooks included, also after an exception.

    Args:
        model: any module that takes (B, C, H, W) or (B, C, D, H, W).
        target_layers: a list of its layers; the maps of several are averaged.
        reshape_transform: turns a layer's output into (B, C, …); not needed for ViT tokens, whose grid is found.
        compute_input_gradient: go back to the input, whose gradient ``compute_cam_per_layer`` finds in ``.grad``.
        uses_gradients: whether there is a backward pass at all.
        tta_transforms: what ``aug_smooth`` averages over: objects with ``augment_image`` and ``deaugment_mask``.
        detach: False hands a subclass tensors that keep their graph.
    """

    seed = 0
    """The seed of everything that is drawn at random."""
    _curvature = False
    _autocast = False

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Transform | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Iterable[Any] | None = None,
        detach: bool = True,
    ) -> None:
        unwrapped(model)  # raises for models that take no hooks
        if not isinstance(target_layers, Iterable):
            raise WhycamError(
                f"target_layers is a list of modules, got a {type(target_layers).__name__}: write [layer]"
            )
        self.model = model
        self.target_layers = list(target_layers)
        self.reshape_transform = reshape_transform
        self.compute_input_gradient = compute_input_gradient
        self.uses_gradients = uses_gradients
        self.tta_transforms = AUGMENTATIONS if tta_transforms is None else tta_transforms
        self.detach = detach
        self.device = _device(model, torch.device("cpu"))
        self.outputs: Any = None
        self.activations_and_grads = ActivationsAndGradients(model, self.target_layers, reshape_transform, detach)
        # Gaudi's lazy mode has to be told where a step ends.
        self._htcore = _habana() if self.device.type == "hpu" else None

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Any,
        grads: Any,
    ) -> Any:
        """One weight per channel, (B, C), for subclasses to define."""
        raise NotImplementedError(f"{type(self).__name__} must define get_cam_weights or get_cam_image")

    @on_device
    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[ImageTarget],
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        """Σ_c w_c · A_c, or its first principal component: (B, C, …) → (B, …)."""
        given = self._as_taken_by(self.get_cam_weights, activations, grads)
        weights = self.get_cam_weights(input_tensor, target_layer, targets, *given)
        activations = activations.detach()
        weights = to_tensor(weights, activations)
        return combined(weights.reshape(*weights.shape[:2], *[1] * (activations.ndim - 2)) * activations, eigen_smooth)

    def _as_taken_by(self, function: object, activations: Tensor, grads: Tensor | None) -> tuple[Any, Any]:
        """Tensors for this package's methods or where ``detach`` is False; numpy arrays for a user's method."""
        as_they_are = takes_tensors(function) or not self.detach
        return (activations, grads) if as_they_are else (to_numpy(activations), to_numpy(grads))

    def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, ...]:
        """The output's size in reverse order: (width, height), or (width, height, depth)."""
        if input_tensor.ndim not in (4, 5):
            raise WhycamError(f"the input must be (B, C, H, W) or (B, C, D, H, W), got {tuple(input_tensor.shape)}")
        return tuple(input_tensor.shape[2:][::-1])

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Sequence[ImageTarget], eigen_smooth: bool) -> Any:
        """Every layer's map, ReLU, scaled and resized: a list of (B, 1, H, W)."""
        size = self.get_target_width_height(input_tensor)
        result = []
        for place, layer in enumerate(self.target_layers):
            activations, grads = self.activations_and_grads.at(place)
            assert activations is not None  # a layer that did not run was refused
            given = self._as_taken_by(self.get_cam_image, activations, grads)
            cam = to_tensor(self.get_cam_image(input_tensor, layer, targets, *given, eigen_smooth), activations)
            result.append(scale(cam.detach().relu(), size)[:, None])
        return result if self._aggregates_tensors else [to_numpy(cam) for cam in result]

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Any:
        """The layers' maps, (B, L, H, W) or a list of (B, 1, H, W) → (B, H, W): ReLU, mean, scaled."""
        given = list(cam_per_target_layer) if isinstance(cam_per_target_layer, list | tuple) else [cam_per_target_layer]
        arrays = not isinstance(given[0], Tensor)
        cams = torch.cat([torch.from_numpy(cam) if isinstance(cam, np.ndarray) else cam for cam in given], dim=1)
        result = scale(cams.relu().mean(dim=1))
        return result.numpy() if arrays else result

    @property
    def _aggregates_tensors(self) -> bool:
        mine = type(self)
        return (
            mine.aggregate_multi_layers is BaseCAM.aggregate_multi_layers
            and mine.compute_cam_per_layer is BaseCAM.compute_cam_per_layer
        )

    def forward(self, input_tensor: Tensor, targets: Targets, eigen_smooth: bool = False) -> Array:
        """(B, C, H, W) → (B, H, W) float32 on [0, 1]."""
        input_tensor, members = self.look(input_tensor, targets)
        with torch.autocast(self.device.type, enabled=False):
            cam_per_layer = self.compute_cam_per_layer(input_tensor, members, eigen_smooth)
            result: Array = to_numpy(self.aggregate_multi_layers(cam_per_layer))
        return result

    def look(self, input_tensor: Tensor, targets: Targets) -> tuple[Tensor, list[ImageTarget]]:
        """Run the network once for all layers; fills ``activations_and_grads`` and ``outputs``.

        Returns:
            The input on the model's device, and the targets, one per image.
        """
        self.device = _device(self.model, input_tensor.device)
        input_tensor = input_tensor.to(self.device)
        self._autocast = torch.is_autocast_enabled(self.device.type)  # of the pass; the maps are computed without
        wanted = targets if isinstance(targets, ImageTargets) else ImageTargets(targets)
        seen = self._pass(input_tensor, wanted)
        if seen.input_gradient is not None:
            # The caller's tensor stays as it is.
            input_tensor = input_tensor.detach().clone().requires_grad_()
            input_tensor.grad = seen.input_gradient
        self.outputs = seen.output
        self.activations_and_grads.fill(seen)
        if self._htcore is not None:
            self._htcore.mark_step()
        return input_tensor, list(seen.targets)

    def _pass(self, images: Tensor, targets: ImageTargets) -> Seen:
        given = (self.model, images, self.target_layers, targets)
        if not self.uses_gradients:
            return _passes.without_gradients(*given, self.reshape_transform)
        if self._curvature:
            return _passes.with_gradients(*given, self.reshape_transform, curvature=True)
        if not self.detach:
            # A subclass that differentiates once more reshapes for itself, as it would in grad-cam.
            return _passes.with_gradients(*given, _passes.as_it_is, graph=True)
        if self.compute_input_gradient:
            return _passes.to_the_input(*given, self.reshape_transform)
        return _passes.with_gradients(*given, self.reshape_transform)

    def forward_augmentation_smoothing(
        self, input_tensor: Tensor, targets: Targets, eigen_smooth: bool = False
    ) -> Array:
        """The mean over augmented copies, flipped back; one batch where all copies have one size."""
        transforms = list(self.tta_transforms)
        copies = [transform.augment_image(input_tensor) for transform in transforms]
        if all(copy.shape == input_tensor.shape for copy in copies):
            repeated = targets
            if targets is not None and not isinstance(targets, ImageTargets):
                check_count(targets, input_tensor)
                repeated = [*targets] * len(copies)
            cams = torch.from_numpy(self.forward(torch.cat(copies), repeated, eigen_smooth)).chunk(len(copies))
            if isinstance(self.outputs, Tensor):
                self.outputs = self.outputs[-len(input_tensor) :]
        else:
            cams = tuple(torch.from_numpy(self.forward(copy, targets, eigen_smooth)) for copy in copies)
        back = [transform.deaugment_mask(cam[:, None])[:, 0] for transform, cam in zip(transforms, cams, strict=True)]
        mean: Array = torch.stack(back).mean(dim=0).numpy()
        return mean

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Targets = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Array:
        """Explain a batch.

        Args:
            input_tensor: (B, C, H, W), as the model expects it.
            targets: one per image; None for the predicted classes.
            aug_smooth: average over flips and slight changes of contrast.
            eigen_smooth: the first principal component instead of the sum over channels.

        Returns:
            (B, H, W) float32 on [0, 1].

        Raises:
            WhycamError: there are not as many targets as images, or a layer did not run.
        """
        smooth = self.forward_augmentation_smoothing if aug_smooth is True else self.forward
        return smooth(input_tensor, targets, eigen_smooth)


def combined(weighted: Tensor, eigen_smooth: bool) -> Tensor:
    """The sum over channels, or their first principal component: (B, C, …) → (B, …)."""
    return project(weighted) if eigen_smooth else weighted.sum(dim=1)


def _device(model: nn.Module, otherwise: torch.device) -> torch.device:
    parameter = next(model.parameters(), None)
    return otherwise if parameter is None else parameter.device


def _habana() -> Any:
    import habana_frameworks.torch.core as htcore  # type: ignore[import-not-found,unused-ignore]

    return htcore
