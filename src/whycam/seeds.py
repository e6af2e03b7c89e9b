"""Random generators that depend on their purpose alone, never on earlier draws.

Every generator is derived from a run's seed, a purpose and a position (the epoch, for example). A resumed run derives
the same generators again, so no generator state has to be stored, and two purposes never share a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from whycam.errors import WhycamError


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose: the SHA-256 of the parts, so that neighboring seeds are unrelated."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for one purpose. Its draws are the same, whichever device they are moved to."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def per_image(purpose: str, seed: int | Sequence[int], images: int) -> list[torch.Generator]:
    """One generator for each image, so that an image's draws do not depend on the rest of the batch.

    Args:
        purpose: what the draws are for.
        seed: one seed for the batch, which is combined with each image's position in it; or one seed per image, which
            makes the draws independent of the position.
        images: number of images.

    Raises:
        WhycamError: the number of seeds differs from the number of images.
    """
    if isinstance(seed, int):
        return [generator(purpose, seed, position) for position in range(images)]
    if len(seed) != images:
        raise WhycamError(f"{len(seed)} seeds for {images} images: give one, or one for each")
    return [generator(purpose, image_seed, 0) for image_seed in seed]
