"""Whether an explanation explains itself, and the scores that weigh this against how much it shows.

Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", CVPR workshops 2021
(arXiv:2104.10252).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whycam.cam.maps import finite, heatmaps
from whycam.device import in_double
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.scoring import check_images, check_maps
from whycam.metrics.map_similarity import pearson

Explain = Callable[[Tensor], Tensor]
"""(n, C, H, W) images in [0, 1] → (n, h, w) signed raw maps.

It is only ever asked about all images of a call at once, in their order, so that it can hold a class for each. It has
to: a map for whatever class is predicted *now* may change because the prediction did.
"""

_SLACK = 1e-6  # of rounding, in numbers that lie in [0, 1] by definition


def coherency(explain: Explain, images: Tensor, maps: Tensor) -> Tensor:
    """How like its own explanation the explained part of an image is: higher is better.

    The image times its heatmap (where this is 0 it goes black) is explained again; a method that found what matters
    should find it again. The score is (correlation of the two heatmaps + 1) / 2.

    Args:
        explain: how ``maps`` were made.
        images: (B, C, H, W) in [0, 1], before normalization.
        maps: (B, h, w) signed, of any size.

    Returns:
        (B,) float64 in [0, 1]; ½, as for unrelated maps, where the correlation is undefined: one of the two has no
        positive evidence or the same everywhere, or the new one is not finite.

    Raises:
        WhycamError: the shapes do not belong together, an image lies outside [0, 1], a map is not finite, or
            ``explain`` gives no maps.
    """
    check_images(images)
    check_maps(maps, images)
    size = images.shape[2:]
    heat = heatmaps(maps.detach().to(images.device), size)
    seen = images * heat[:, None].to(images)
    again = explained(explain, seen).to(images.device)
    defined = finite(again)
    alike = pearson(heat, heatmaps(again, size))
    return (torch.where(defined.to(alike.device), alike, 0).nan_to_num(nan=0.0) + 1) / 2


def adcc(drop: Tensor, complexity: Tensor, coherency: Tensor) -> Tensor:
    """Average drop, coherency and complexity in one: the harmonic mean of 1 − drop, 1 − complexity and coherency.

    Args:
        drop: (B,) the share of its score that the class loses on the image times its heatmap, in [0, 1].
        complexity: (B,) in [0, 1], see `whycam.metrics.map_complexity.complexity`.
        coherency: (B,) in [0, 1].

    Returns:
        (B,) float64 in [0, 1], higher is better: 0 where any of the three is 0, NaN where one is NaN.

    Raises:
        WhycamError: these are not three numbers an image, or not in [0, 1].
    """
    _check(drop=drop, complexity=complexity, coherency=coherency)
    _check_range("drop", drop)
    return _harmonic_mean(1 - in_double(drop), 1 - in_double(complexity), in_double(coherency))


def arcc(road_combined: Tensor, complexity: Tensor, coherency: Tensor) -> Tensor:
    """The same with ROAD in the place of the drop: pixels are filled in, not darkened (arXiv:2605.14641).

    Twice ROAD's combined score stands for 1 − drop; what is below 0 counts as 0.

    Args:
        road_combined: (B,) `whycam.metrics.Road.combined`, of softmax probabilities: in [−½, ½].
        complexity: (B,) in [0, 1], see `whycam.metrics.map_complexity.complexity`.
        coherency: (B,) in [0, 1].

    Returns:
        (B,) float64 in [0, 1], higher is better: 0 where any of the three is 0, NaN where one is NaN.

    Raises:
        WhycamError: these are not three numbers an image, or not in [0, 1] and [−½, ½].
    """
    _check(road_combined=road_combined, complexity=complexity, coherency=coherency)
    _check_range("road_combined", road_combined, -0.5, 0.5)
    return _harmonic_mean(2 * in_double(road_combined), 1 - in_double(complexity), in_double(coherency))


def explained(explain: Explain, images: Tensor) -> Tensor:
    """(B, h, w) raw maps without a graph; where there are no images nothing is asked.

    Raises:
        WhycamError: ``explain`` answers with anything else.
    """
    if not len(images):
        return images.new_zeros(0, 1, 1)
    maps: object = explain(images)
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(images) or not maps.numel():
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise WhycamError(f"explain answered {len(images)} images with {given}, expected (n, h, w) maps, one for each")
    return maps.detach()


def _harmonic_mean(*parts: Tensor) -> Tensor:
    """Of numbers in [0, 1], 0 where one is 0 (its reciprocal is infinite); what rounding put outside is put back."""
    return len(parts) / torch.stack([part.clamp(0, 1).reciprocal() for part in parts]).sum(dim=0)


def _check(**parts: Tensor) -> None:
    if len({part.shape for part in parts.values()}) > 1 or any(part.ndim != 1 for part in parts.values()):
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise WhycamError(f"the mean is taken image by image, of (B,) each, got {shapes}")
    for name in ("complexity", "coherency"):
        _check_range(name, parts[name])


def _check_range(name: str, part: Tensor, low: float = 0, high: float = 1) -> None:
    outside = part[(part < low - _SLACK) | (part > high + _SLACK)]  # NaN is neither
    if len(outside):
        raise WhycamError(f"{name} must lie between {low:g} and {high:g}, got {float(outside[0]):g}")
