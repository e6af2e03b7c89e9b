"""The model parameter randomization test: do maps depend on what the network has learned?

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
from whycam.metrics.randomization.reinitialize import Order, reinitialized_by_part
from whycam.nn_utils import unwrapped

Key = tuple[str, str, str]
_WINDOW = 7  # pixels


@dataclass(frozen=True, eq=False)
class SanityCheck:
    """The similarity between the maps of a network and those of its reinitialized copies.

    If a method's maps hardly change when the network is reinitialized, the method does not explain the network. An edge
    detector and a Gaussian at the image center (``sobel``, ``center``) always score 1. A method that reads only a
    layer's activations (``eigencam``) scores 1 until a part before that layer is reinitialized, because it ignores all
    later parts. The converse is not true: a map that changes is not necessarily right. Do not expect 0 everywhere: the
    image often determines where magnitudes are large, so ``rank_absolute`` and ``similarity`` stay above ``rank``.

    Attributes:
        order: "cascading" or "independent", see `whycam.metrics.reinitialized_by_part`.
        parts: the reinitialized parts, from the output to the input.
        rank: (part, method, layer) → (B,) float64, Spearman's correlation of the raw signed maps, in [−1, 1]; NaN where
            a map is constant or not finite.
        rank_absolute: the same for the absolute values of the maps.
        similarity: the same keys → (B,) float64, the structural similarity of the heatmaps at the image's size, at most
            1; NaN where both heatmaps are blank or a map is not finite.
    """

    order: Order
    parts: tuple[str, ...]
    rank: Mapping[Key, Tensor]
    rank_absolute: Mapping[Key, Tensor]
    similarity: Mapping[Key, Tensor]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each part, method and layer, with the mean of each similarity over the images where it is defined.

        The number of these images is in the column with the suffix ``_n``; if it is 0, the mean is None.
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
    """Reinitialize parts of the network, explain the same classes of the same images again, and compare the maps.

    Only one copy of the network is in memory at a time. Methods that use random numbers get the same ones for all
    copies, so that maps differ only because the networks do.

    Args:
        model: not changed.
        images: (B, C, H, W) float, normalized as the model expects, on the model's device.
        layers: see `whycam.explain`.
        methods: see `whycam.explain`.
        targets: None for the classes that ``model`` predicts; or a class's index or name, or (B,) of either. All copies
            are explained for the same classes.
        order: "cascading" or "independent", see `whycam.metrics.reinitialized_by_part`.
        parts: names of submodules, from the output to the input; by default all.
        seed: seeds the new parameters and the methods that use random numbers.

    Raises:
        WhycamError: `whycam.explain` or `whycam.metrics.reinitialized_by_part` refuses an argument, a target is not a
            class, or the inputs are not images.
    """
    copies = reinitialized_by_part(model, order=order, parts=parts, seed=seed)
    network = unwrapped(model)
    target = _class_target(targets, network)
    layers = getattr(network, "cam_layers", None) if layers is None else layers
    resolved = None if layers is None else resolve_layers(model, layers)
    # As modules: their paths then name the maps and seed the random methods. A copy has no wrapper, so the user's layer
    # names may not fit it, and its default layer might be another one.
    modules = None if resolved is None else [layer.module for layer in resolved]
    original = explain(network, images, modules, methods, targets, seed=seed)
    if original.inputs.ndim != 4:
        raise WhycamError(f"the sanity check compares maps of images, (B, C, H, W), got {tuple(original.inputs.shape)}")
    if isinstance(target, Predicted):
        target = ClassScore(original.predicted)
    paths = list(original.channels)
    names = {layer.path: layer.name for layer in resolved or ()}
    # Methods that join all layers have a key of all their paths.
    names["+".join(paths)] = "+".join(names.get(path, path) for path in paths)
    found: dict[Key, tuple[Tensor, ...]] = {}
    for part, copied in copies:
        modules = [copied.get_submodule(path) for path in paths] or None
        maps = explain(copied, images, modules, methods, target, seed=seed).maps
        del copied, modules  # frees the copy before the next one is made
        for ((method, path, _), one), other in zip(original.maps.items(), maps.values(), strict=True):
            found[part, method, names.get(path, path)] = _similarities(one, other, original.inputs.shape[2:])
    rank, rank_absolute, similarity = ({key: values[place] for key, values in found.items()} for place in range(3))
    return SanityCheck(order, tuple(dict.fromkeys(key[0] for key in found)), rank, rank_absolute, similarity)


def _class_target(targets: TargetLike, network: nn.Module) -> Predicted | ClassScore:
    target = resolve_target(targets, ClassNames.of(network))
    if not isinstance(target, Predicted | ClassScore):
        raise WhycamError(
            "all copies are explained for the same class: targets must be None (the predicted class), a class's index "
            f"or name, or one for each image; got {type(targets).__name__}"
        )
    return target


def _similarities(one: Tensor, other: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
    """(B, h, w) twice → (B,) each: Spearman of the values, Spearman of the magnitudes, SSIM of the heatmaps."""
    equal = (one == other).flatten(1).all(dim=1).cpu()
    finite = (one.isfinite() & other.isfinite()).flatten(1).all(dim=1).cpu()
    shown, shown_other = heatmaps(one, size), heatmaps(other, size)
    blank = ((shown == 0) & (shown_other == 0)).flatten(1).all(dim=1).cpu()
    structural = ssim(shown, shown_other, window=min(_WINDOW, *size), span=1.0).cpu()
    similarities = (
        spearman(one, other).cpu(),
        spearman(one.abs(), other.abs()).cpu(),
        structural.masked_fill(blank | ~finite, torch.nan),
    )
    # Equal maps score exactly 1: a rounding error would look like a change.
    return tuple(values.masked_fill(equal & ~values.isnan(), 1.0) for values in similarities)
