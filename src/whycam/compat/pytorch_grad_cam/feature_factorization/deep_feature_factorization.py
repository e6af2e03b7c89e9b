"""Deep feature factorization (Collins et al., 2018, arXiv:1806.10206) with grad-cam's start and scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.cam.factorize import nmf
from whycam.compat.pytorch_grad_cam import _passes
from whycam.compat.pytorch_grad_cam._arrays import Array, to_numpy
from whycam.compat.pytorch_grad_cam._explainer import Explainer
from whycam.compat.pytorch_grad_cam._passes import Transform
from whycam.compat.pytorch_grad_cam._targets import ImageTargets
from whycam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from whycam.compat.pytorch_grad_cam.utils.image import (
    create_labels_legend,
    scale_cam_image,
    show_factorization_on_image,
)
from whycam.nn_utils import unwrapped


def dff(activations: Array, n_components: int = 5) -> tuple[Array, Array]:
    """Factorize: (B, C, h, w) → concepts (C, n) and maps (B, n, h, w); the array that is given stays as it is.

    Each channel's least value is taken off before and added to the concepts after; NaN counts as 0.
    """
    batch, channels, *size = activations.shape
    x = np.nan_to_num(activations.swapaxes(0, 1).reshape(channels, -1), nan=0.0, posinf=np.inf, neginf=-np.inf)
    offset = x.min(axis=1, keepdims=True)
    x = x - offset
    # The start decides which factorization is found: this is scikit-learn's for init="random", random_state=0.
    draw = np.random.RandomState(0)
    level = np.sqrt(x.mean() / n_components)
    h = np.abs(level * draw.standard_normal((n_components, x.shape[1])).astype(x.dtype))
    w = np.abs(level * draw.standard_normal((channels, n_components)).astype(x.dtype))
    concepts, maps = nmf(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(h))
    return concepts.numpy() + offset, maps.numpy().reshape(n_components, batch, *size).swapaxes(0, 1)


class DeepFeatureFactorization(Explainer):
    """Concepts in a layer's activations, and where each is seen.

    Args:
        model: the network.
        target_layer: whose activations are factorized.
        reshape_transform: turns its output into (B, C, h, w).
        computation_on_concepts: what to run on the concepts (n, C), the final linear layer for example.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: nn.Module,
        reshape_transform: Transform | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.target_layer = target_layer
        self.reshape_transform = reshape_transform
        self.computation_on_concepts = computation_on_concepts
        self.activations_and_grads = ActivationsAndGradients(model, [target_layer], reshape_transform)

    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> Any:
        """Factorize a batch's activations.

        Args:
            input_tensor: (B, C, H, W).
            n_components: how many concepts.

        Returns:
            The concepts (C, n); per image the maps (n, H, W) on [0, 1]; and where something is to be run on the
            concepts, what it gave, (n, …).
        """
        parameter = next(unwrapped(self.model).parameters(), input_tensor)
        images = input_tensor.to(parameter.device)
        seen = _passes.without_gradients(
            self.model, images, [self.target_layer], ImageTargets([_nothing] * len(images)), self.reshape_transform
        )
        self.activations_and_grads.fill(seen)
        concepts, maps = dff(to_numpy(seen.activations[0]), n_components)
        height, width = input_tensor.shape[-2:]
        explanations = [scale_cam_image(image, (width, height)) for image in maps]
        if self.computation_on_concepts is None:
            return concepts, explanations
        with torch.no_grad():
            found = self.computation_on_concepts(torch.from_numpy(np.float32(concepts.T)).to(parameter.device))
        return concepts, explanations, to_numpy(found)


def run_dff_on_image(
    model: Any,
    target_layer: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    img_pil: Any,
    img_tensor: Tensor,
    reshape_transform: Transform | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> Array:
    """An image, its concepts drawn over it, and a legend of each concept's classes.

    Args:
        model: the network; its ``config.id2label`` names the classes.
        target_layer: whose activations are factorized.
        classifier: concepts (n, C) → logits (n, K).
        img_pil: the picture, as Pillow has it.
        img_tensor: (C, H, W), the same as the network expects it.
        reshape_transform: turns the layer's output into (B, C, h, w).
        n_components: how many concepts.
        top_k: classes per concept in the legend.

    Returns:
        (H, 3W, 3) uint8.
    """
    picture = np.array(img_pil)
    factorize = DeepFeatureFactorization(model, target_layer, reshape_transform, classifier)
    _, maps, outputs = factorize(img_tensor[None], n_components)
    probabilities = torch.from_numpy(outputs).softmax(dim=-1).numpy()
    labels: Sequence[str] = create_labels_legend(probabilities, labels=model.config.id2label, top_k=top_k)
    shown = show_factorization_on_image(picture / 255, maps[0], image_weight=0.3, concept_labels=labels)
    return np.hstack((picture, shown))


def _nothing(_output: Any) -> Tensor:
    return torch.zeros(())
