"""Whether maps depend on what the network has learnt: the model parameter randomization test.

Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whycam.cam.explain import explain
from whycam.cam.maps import heatmaps
from whycam.cam.methods.registry import MethodLike
from whycam.cam.network.inputs import InputsLike
from whycam.cam.network.layers import LayerLike, resolve_layers
from whycam.cam.targets.class_names import ClassNames
from whycam.cam.targets.classification import ClassScore, Predicted, TargetLike
from whycam.cam.targets.resolve import resolve_target
from whycam.errors import WhycamError
from whycam.metrics.map_similarity import spearman, ssim
from whycam.metrics.randomization.reinitialize import Order, randomized
from whycam.nn_utils import unwrapped

Key = tuple[str, str, str]
_WINDOW = 7  # pixels


@dataclass(frozen=True, eq=False)
class SanityCheck:
    """How alike the maps of a network and of its randomized copies are.

    A method whose maps hardly change while the network is reinitialized does not explain the network. An edge detector
    and a Gaussian in the middle (``sobel``, ``center``) stay at 1 throughout. What reads a layer's activations alone
    (``eigencam``) stays at 1 until something up to that layer is drawn anew: it shows what the layer sees, whatever is
    made of it. The opposite does not follow: a map that changes need not be right. And 0 is not to be had everywhere:
    where magnitudes are large often follows from the image, so ``rank_absolute`` and ``similarity`` stay the higher.

    Attributes:
        order: "cascading" or "independent", see `whycam.metrics.randomization.reinitialize.randomized`.
        parts: what was drawn anew, from the output towards the input.
        rank: (part, method, layer) → (B,) float64, Spearman's correlation of the raw signed maps, in [−1, 1]; NaN where
            a map is constant or not finite.
        rank_absolute: the same of their absolute values.
        similarity: the same keys → (B,) float64, the structural similarity of the heatmaps at the image's size, at most
            1; NaN where both are blank or a map is not finite.
    """

    order: Order
    parts: tuple[str, ...]
    rank: Mapping[Key, Tensor]
    rank_absolute: Mapping[Key, Tensor]
    similarity: Mapping[Key, Tensor]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each part, method and layer: for each measure its mean over the images where it is defined.

        Beside each mean stands, with ``_n`` at its name's end, of how many images it is; of none the mean is None.
        """
        rows = []
        for key in self.rank:
            row: dict[str, Any] = dict(zip(("part", "method", "layer"), key, strict=True))
            for name in ("rank", "rank_absolute", "similarity"):
                values = getattr(self, name)[key]
                defined = values[~values.isnan()]
                row |= {name: float(defined.mean()) if len(defined) else None, f"{name}_n": len(defined)}
            rows.append(row)
        return rows


def sanity_check(
    model: nn.Module,
    images: InputsLike,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    methods: Sequence[MethodLike] | MethodLike = "gradcam",
    targets: TargetLike = None,
    *,
    order: Order = "cascading",
    parts: Sequence[str] | str | None = None,
    seed: int = 0,
) -> SanityCheck:
    """Explain the same classes of the same images with the network's parts drawn anew, and compare the maps.

    One copy of the network is in memory at a time. What a method draws at random is the same for all copies, so that
    maps differ by their network alone.

    Args:
        model: left as it was.
        images: (B, C, H, W) float, normalized as the model expects, on the model's device.
        layers: as `whycam.explain` takes them.
        methods: as `whycam.explain` takes them.
        targets: None, the classes that ``model`` predicts; or a class's index or name, or (B,) of either. Every copy is
            asked about the same.
        order: "cascading" or "independent"; see `whycam.metrics.randomization.reinitialize.randomized`.
        parts: names of submodules, from the output towards the input; by default all.
        seed: of what is drawn anew, and of the methods that draw at random.

    Raises:
        WhycamError: what `whycam.explain` and `whycam.metrics.randomization.reinitialize.randomized` refuse, a target
            that is no class, or inputs that are no images.
    """
    copies = randomized(model, order=order, parts=parts, seed=seed)
    network = unwrapped(model)
    target = resolve_target(targets, ClassNames.of(network))
    if not isinstance(target, Predicted | ClassScore):
        raise WhycamError(
            "every copy is asked about the same class: targets is None (what the model predicts), a class's index or "
            f"name, or one for each image; got {type(targets).__name__}"
        )
    layers = getattr(network, "cam_layers", None) if layers is None else layers
    asked = None if layers is None else resolve_layers(model, layers)
    # As modules, so that the maps, and what a method draws for a layer, go by its path: a copy has other modules, is in
    # no wrapper, and might have another default layer.
    given = None if asked is None else [layer.module for layer in asked]
    original = explain(network, images, given, methods, targets, seed=seed)
    if original.inputs.ndim != 4:
        raise WhycamError(f"the sanity check compares maps of images, (B, C, H, W), got {tuple(original.inputs.shape)}")
    if isinstance(target, Predicted):
        target = ClassScore(original.predicted)
    paths = list(original.channels)
    names = {layer.path: layer.name for layer in asked or ()}
    names["+".join(paths)] = "+".join(names.get(path, path) for path in paths)  # of methods that join all layers
    found: dict[Key, tuple[Tensor, ...]] = {}
    for part, copied in copies:
        given = [copied.get_submodule(path) for path in paths] or None
        maps = explain(copied, images, given, methods, target, seed=seed).maps
        del copied, given  # before the next is made
        for ((method, path, _), one), other in zip(original.maps.items(), maps.values(), strict=True):
            found[part, method, names.get(path, path)] = _agreement(one, other, original.inputs.shape[2:])
    rank, rank_absolute, similarity = ({key: values[place] for key, values in found.items()} for place in range(3))
    return SanityCheck(order, tuple(dict.fromkeys(key[0] for key in found)), rank, rank_absolute, similarity)


def _agreement(one: Tensor, other: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
    """(B, h, w) twice → Spearman of the values, of their magnitudes, and SSIM of the heatmaps, (B,) each."""
    equal = (one == other).flatten(1).all(dim=1).cpu()
    finite = (one.isfinite() & other.isfinite()).flatten(1).all(dim=1).cpu()
    shown, shown_other = heatmaps(one, size), heatmaps(other, size)
    blank = ((shown == 0) & (shown_other == 0)).flatten(1).all(dim=1).cpu()
    alike = ssim(shown, shown_other, window=min(_WINDOW, *size), span=1.0).cpu()
    measures = (
        spearman(one, other).cpu(),
        spearman(one.abs(), other.abs()).cpu(),
        alike.masked_fill(blank | ~finite, torch.nan),
    )
    # Exactly: what rounding leaves of a correlation with itself would look like a change.
    return tuple(values.masked_fill(equal & ~values.isnan(), 1.0) for values in measures)
