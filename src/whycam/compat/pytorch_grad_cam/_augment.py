"""The six copies that augmentation smoothing averages over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Mirrors an image or not, and multiplies it by a factor.

    Attributes:
        flip: left to right.
        factor: of the input's values; they are normalized, so it changes the contrast.
    """

    flip: bool
    factor: float

    def augment_image(self, image: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return (image.flip(3) if self.flip else image) * self.factor

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W), flipped back."""
        return mask.flip(3) if self.flip else mask


AUGMENTATIONS = tuple(Augmentation(flip, factor) for flip in (False, True) for factor in (0.9, 1.0, 1.1))
