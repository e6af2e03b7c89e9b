"""Max-sensitivity: how much a map changes when its image hardly does.

Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019 (arXiv:1901.09392).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.checks import Explain, check_images, check_noise, maps_from
from whycam.seeds import per_image


def max_sensitivity(
    explain: Explain,
    images: Tensor,
    *,
    radius: float = 0.02,
    draws: int = 10,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """The largest relative change of a map when its image hardly changes: lower is better.

    The maximum of ‖Φ(x′) − Φ(x)‖₂ / ‖Φ(x)‖₂ over images x′ whose values each differ from those of x by less than the
    radius. It is relative, unlike the paper's, because raw maps have arbitrary units. A map that ignores the image
    scores 0.

    Args:
        explain: see `whycam.metrics.checks.Explain`.
        images: (B, C, H, W) in [0, 1], before normalization.
        radius: the largest change of a value, drawn uniformly; x′ is clipped to [0, 1].
        draws: the number of x′ per image. The maximum grows with it, so compare only equal numbers of draws.
        seed: one number, or one per image, so that an image's score does not depend on the rest of the batch.

    Returns:
        (B,) float64; NaN where Φ(x) is zero or a map is not finite.

    Raises:
        WhycamError: an image lies outside [0, 1], ``explain`` does not return maps, the radius is not a number above 0,
            ``draws`` is below 1, or the number of seeds is not the number of images.
    """
    check_images(images)
    check_noise("radius", radius)
    if draws < 1:
        raise WhycamError(f"draws must be at least 1, got {draws}")
    generators = per_image("max_sensitivity", seed, len(images))
    original = in_double(maps_from(explain, images)).flatten(1)
    farthest = original.new_zeros(len(original))
    for _ in range(draws if len(images) else 0):
        shift = torch.stack([torch.rand(images.shape[1:], generator=draw) for draw in generators])
        moved = (images + radius * (2 * shift - 1).to(images)).clamp(0, 1)
        distance = (in_double(maps_from(explain, moved)).flatten(1) - original).norm(dim=1)
        farthest = torch.maximum(farthest, distance)
    relative = farthest / original.norm(dim=1)
    return torch.where(relative.isfinite(), relative, torch.nan)
