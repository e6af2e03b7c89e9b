"""Random numbers that depend on what they are for, never on what was drawn before.

Every generator is derived from a run's seed, a purpose and a position (an epoch, say). A run that resumes derives
the same generators again, so no generator state has to be stored, and two purposes never share a stream.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose: the SHA-256 of the parts, so that neighbouring seeds are unrelated."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for one purpose; what it draws is the same whatever device the draws are then moved to."""
    return torch.Generator().manual_seed(derive_seed(*parts))
