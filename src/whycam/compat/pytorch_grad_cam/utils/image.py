"""Images in, pictures out; numpy alone, but for the legend and for color maps other than jet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from whycam.compat.pytorch_grad_cam._arrays import Array
from whycam.compat.pytorch_grad_cam._color import JET, bytes_of, color_map, rainbow, with_value
from whycam.compat.pytorch_grad_cam._scaling import scale, scale_channels
from whycam.errors import WhycamError


def preprocess_image(
    img: Array, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """(H, W, C) or (H, W) → (1, C, H, W), normalized; whole numbers are divided by 255 first, floats are not."""
    channels_last = img[:, :, None] if img.ndim == 2 else img
    tensor = torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)).copy())
    if tensor.dtype == torch.uint8:
        tensor = tensor.to(torch.get_default_dtype()) / 255
    middle, spread = (torch.as_tensor(value, dtype=tensor.dtype).view(-1, 1, 1) for value in (mean, std))
    return ((tensor - middle) / spread)[None]


def deprocess_image(img: Array) -> Array:
    """Any range → uint8: the mean becomes mid-gray, a standard deviation a tenth of the range."""
    normal = (img - np.mean(img)) / (np.std(img) + 1e-5)
    return bytes_of(np.clip(normal * 0.1 + 0.5, 0, 1))


def show_cam_on_image(
    img: Array, mask: Array, use_rgb: bool = False, colormap: int = JET, image_weight: float = 0.5
) -> Array:
    """A map in color over an image.

    Args:
        img: (H, W, 3) on [0, 1].
        mask: (H, W) on [0, 1].
        use_rgb: whether ``img`` is RGB, not BGR.
        colormap: OpenCV's number for it; 2 is jet.
        image_weight: of the image; the map has the rest.

    Returns:
        (H, W, 3) uint8, as bright as it can be.

    Raises:
        WhycamError: the image is not on [0, 1], or the weight is not.
    """
    if np.max(img) > 1:
        raise WhycamError(f"the image must be floats on [0, 1]; its largest value is {np.max(img)}: divide by 255")
    if not 0 <= image_weight <= 1:
        raise WhycamError(f"image_weight lies between 0 and 1, got {image_weight}")
    heat = color_map(bytes_of(mask), colormap, rgb=use_rgb).astype(np.float32) / 255
    blended = (1 - image_weight) * heat + image_weight * img
    return bytes_of(blended / np.max(blended))


def create_labels_legend(concept_scores: Array, labels: Mapping[int, str], top_k: int = 2) -> list[str]:
    """(concepts, K) → one text per concept: its best classes, a line each with the score."""
    texts = []
    for scores in concept_scores:
        best = np.argsort(scores)[::-1][:top_k]
        names = (",".join(labels[int(index)].split(",")[:3]) for index in best)
        texts.append("\n".join(f"{name}:{scores[index]:.2f}" for name, index in zip(names, best, strict=True)))
    return texts


def show_factorization_on_image(
    img: Array,
    explanations: Array,
    colors: Sequence[Array] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> Array:
    """Concepts in one color each over an image; where several overlap, the strongest shows.

    Args:
        img: (H, W, 3) RGB on [0, 1].
        explanations: (concepts, H, W) on [0, 1]; left as they are.
        colors: (3,) RGB on [0, 1] each; a rainbow where None.
        image_weight: of the image; the concepts have the rest.
        concept_labels: texts for a legend, which makes the result twice as wide.

    Returns:
        (H, W or 2W, 3) uint8.
    """
    count = len(explanations)
    chosen = rainbow(np.arange(0, 1, 1 / count)[:count]) if colors is None else [np.asarray(c)[:3] for c in colors]
    strongest = explanations.argmax(axis=0)
    picture: Array = np.zeros((*strongest.shape, 3), np.float32)
    for index in range(count):
        here = np.where(strongest == index, explanations[index], 0)
        picture += with_value(bytes_of(np.asarray(chosen[index])), bytes_of(here)).astype(np.float32) / 255
    result = bytes_of(img * image_weight + picture * (1 - image_weight))
    if concept_labels is None:
        return result
    from whycam.compat.pytorch_grad_cam._legend import legend

    return np.hstack((result, legend(chosen, concept_labels, *img.shape[:2])))


def scale_cam_image(cam: Array, target_size: Sequence[int] | None = None) -> Array:
    """Each map (B, …) stretched to [0, 1] and resized to (width, height) or (width, height, depth); float32."""
    return scale(torch.from_numpy(np.stack(list(cam))), target_size).numpy()


def scale_accross_batch_and_channels(tensor: Array, target_size: Sequence[int]) -> Array:
    """(B, C, h, w) → (B, C, height, width), each channel scaled by itself."""
    return scale_channels(torch.from_numpy(tensor), target_size).numpy()
