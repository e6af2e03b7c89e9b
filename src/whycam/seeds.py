"""Random numbers that depend on what they are for, never on what was drawn before.

Every generator is derived from a run's seed, a purpose and a position (an epoch, say). A run that resumes derives
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
    """A CPU generator for one purpose; what it draws is the same whatever device the draws are then moved to."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def per_image(purpose: str, seed: int | Sequence[int], images: int) -> list[torch.Generator]:
    """A generator for each image, so that what it draws does not depend on the rest of the batch.

    Args:
        purpose: what for.
        seed: one, with which an image's place in the batch is told apart, or one for each image, wherever it stands.
        images: how many.

    Raises:
        WhycamError: there is another number of seeds.
    """
    if isinstance(seed, int):
        return [generator(purpose, seed, place) for place in range(images)]
    if len(seed) != images:
        raise WhycamError(f"{len(seed)} seeds for {images} images: give one, or one for each")
    return [generator(purpose, own, 0) for own in seed]
