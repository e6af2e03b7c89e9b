"""A stratified hold-out of training images, so that tuning does not need the test set."""

from __future__ import annotations

import torch

from whycam.data.source import ImageSource
from whycam.data.subset import Subset
from whycam.errors import WhycamError
from whycam.seeds import generator


def hold_out(source: ImageSource, images: int = 5000, *, seed: int = 0) -> tuple[Subset, Subset]:
    """Split ``source`` into a training part and a stratified validation part of ``images`` images.

    Each class contributes in proportion to its size; the largest remainders are rounded up, so that the sum is exact.
    The split depends on its own ``seed`` and not on a run's seed, so that runs can be compared on the same images.

    Raises:
        WhycamError: one of the parts would be empty.
    """
    if not 0 < images < len(source):
        raise WhycamError(f"{source.name}: cannot hold out {images} of {len(source)} images; hold out fewer")
    labels = torch.as_tensor(source.labels)
    counts = torch.bincount(labels, minlength=len(source.classes))
    quota = counts.double() * images / len(source)
    shares = quota.floor().long()
    rest = images - int(shares.sum())
    shares[(quota - shares).argsort(descending=True, stable=True)[:rest]] += 1
    draw = generator(seed, "hold-out")
    held = torch.zeros(len(source), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = (labels == label).nonzero().flatten()
        held[members[torch.randperm(len(members), generator=draw)[:share]]] = True
    training, validation = ((~held).nonzero().flatten().numpy(), held.nonzero().flatten().numpy())
    return (
        Subset(source, training, f"{source.name} without the held-out {images:,}"),
        Subset(source, validation, f"{source.name}, held-out {images:,}"),
    )
