"""The context of a comparison: one network, some images, and the maps of all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from whycam._lazy import renamed_attribute
from whycam.cam.explain import Explainer
from whycam.cam.maps import finite, heatmaps, only_finite
from whycam.cam.methods.registry import Method
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.confidence_drop import ConfidenceChange, confidence_change
from whycam.metrics.map_complexity import complexity
from whycam.metrics.robustness.coherency import coherency
from whycam.metrics.scoring import Preprocessing
from whycam.nn_utils import first_tensor
from whycam.seeds import derive_seed

Key = tuple[str, str]
"""(method, layer) as in an `Explanation`; the layer is "input" for methods that look only at the image."""

RANDOM = "random"
CONTROLS = (RANDOM, "sobel", "center")
"""Maps that ignore the decision: random channel weights, the image's edges, a Gaussian at the image center."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ComparisonContext:
    """The network, the images and all maps of a comparison. Every map explains the predicted class.

    Attributes:
        model: the network, in eval mode.
        images: (B, C, H, W) floats in [0, 1], at the network's size.
        preprocess: turns them into network input.
        layers: names.
        methods: `Method` objects.
        seed: seeds all random numbers.
        batch_size: images in one forward pass.
    """

    model: nn.Module
    images: Tensor
    preprocess: Preprocessing
    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    seed: int = 0
    batch_size: int = 64
    _cache: dict[object, Any] = field(init=False, repr=False, default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """(B, K).

        Raises:
            WhycamError: the network has another output, or K is 1.
        """
        with torch.no_grad():
            outputs = [
                first_tensor(self.model(self.preprocess(batch))) for batch in torch.split(self.images, self.batch_size)
            ]
        logits = [output for output in outputs if output is not None and output.ndim == 2]
        if logits and logits[0].shape[1] == 1:
            raise WhycamError(
                "the network has a single logit, and the softmax of one logit is always 1: compare with a network that "
                "returns two, torch.cat([torch.zeros_like(z), z], dim=1) for a single logit z"
            )
        if len(logits) < len(outputs):
            raise WhycamError("methods are compared for the predicted class, and this network has no (B, K) logits")
        return torch.cat(logits).float()

    @cached_property
    def classes(self) -> Tensor:
        """(B,) the predicted classes. Every map explains them, also after the image was altered."""
        return self.logits.argmax(dim=1)

    @cached_property
    def maps(self) -> dict[Key, Tensor]:
        """All signed maps, (B, h, w) each; a map that is not finite is replaced by zeros (see `broken`)."""
        return {key: only_finite(raw) for key, raw in self._raw_maps.items()}

    @cached_property
    def broken(self) -> dict[Key, int]:
        """The number of maps that are not finite."""
        return {key: int((~finite(raw)).sum()) for key, raw in self._raw_maps.items()}

    @property
    def blank(self) -> dict[Key, int]:
        """The number of maps that are constant, without those that are not finite."""
        return {key: int(constant(raw).sum()) for key, raw in self._raw_maps.items()}

    @cached_property
    def _raw_maps(self) -> dict[Key, Tensor]:
        return self.explain(self.model, self.images, self.classes)

    @property
    def seeds(self) -> list[int]:
        """A seed for each image, derived from its position."""
        return [derive_seed("context", self.seed, place) for place in range(len(self.images))]

    def explain(self, model: nn.Module, images: Tensor, classes: Tensor, only: Key | None = None) -> dict[Key, Tensor]:
        """Maps of the first n images, or of altered versions of them, by this network or another.

        The control "random" draws new weights for each image. With the same weights for all images, the comparison of a
        method with this control would depend on a single draw.

        Args:
            model: the network.
            images: (n, C, H, W) in [0, 1].
            classes: (n,) the classes to explain.
            only: the one map to compute, by default all.

        Returns:
            key → (n, h, w).
        """
        methods, layers = self.methods, self.layers
        if only is not None:
            methods = tuple(method for method in methods if method.name == only[0])
            layers = (only[1],) if only[1] in layers else layers
        found: dict[Key, list[Tensor]] = {}

        def add(some: Sequence[Method], rows: slice, seed: int) -> None:
            explanation = Explainer(model, layers, some, seed=seed)(self.preprocess(images[rows]), classes[rows])
            for (method, layer, _), raw in explanation.maps.items():
                found.setdefault((method, layer), []).append(raw)

        if in_batches := [method for method in methods if method.name != RANDOM]:
            for start in range(0, len(images), self.batch_size):
                add(in_batches, slice(start, start + self.batch_size), self.seed)
        if one_by_one := [method for method in methods if method.name == RANDOM]:
            for place, seed in enumerate(self.seeds[: len(images)]):
                add(one_by_one, slice(place, place + 1), seed)
        return {key: torch.cat(parts) for key, parts in found.items()}

    def explain_altered(self, key: Key) -> Callable[[Tensor], Tensor]:
        """The function that makes the maps of ``key`` for altered images: (B, C, H, W) → (B, h, w)."""

        def explain(altered: Tensor) -> Tensor:
            return only_finite(self.explain(self.model, altered, self.classes, key)[key])

        return explain

    def cached(self, name: object, make: Callable[[], T]) -> T:
        """The result of ``make()``, computed at the first call with this ``name`` and kept for later calls."""
        if name not in self._cache:
            self._cache[name] = make()
        result: T = self._cache[name]
        return result

    def confidence_change(self, key: Key) -> ConfidenceChange:
        """The probability of the class before and after the image is multiplied by its heatmap."""
        return self.cached(
            ("confidence_change", key),
            lambda: confidence_change(self.model, self.images, self.maps[key], self.classes,
                                      preprocess=self.preprocess, batch_size=self.batch_size),
        )  # fmt: skip

    def coherency(self, key: Key) -> Tensor:
        """The similarity of a map to the map of the image times its heatmap."""
        return self.cached(
            ("coherency", key), lambda: coherency(self.explain_altered(key), self.images, self.maps[key])
        )

    def complexity(self, key: Key) -> Tensor:
        """How much of the image the heatmap highlights."""
        return complexity(heatmaps(self.maps[key], self.images.shape[2:]))

    explained = renamed_attribute("explained", "explain")
    again = renamed_attribute("again", "explain_altered")
    once = renamed_attribute("once", "cached")
    change = renamed_attribute("change", "confidence_change")


def constant(maps: Tensor) -> Tensor:
    """(B, …) → (B,) bool: which maps have the same value everywhere, and therefore rank no pixel above another."""
    values = maps.flatten(1)
    return values.amin(dim=1) == values.amax(dim=1)
