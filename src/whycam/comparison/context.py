"""What explanation methods compete on: one network, some images, all of their maps, and what was made of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from whycam.cam.explain import Explainer
from whycam.cam.maps import finite, heatmaps, only_finite
from whycam.cam.methods.registry import Method
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.confidence_drop import ConfidenceChange, confidence_change
from whycam.metrics.faithfulness.scoring import Preprocessing
from whycam.metrics.map_complexity import complexity
from whycam.metrics.robustness.coherency import coherency
from whycam.nn_utils import first_tensor
from whycam.seeds import derive_seed

Key = tuple[str, str]
"""(method, layer) as an `Explanation` names them: "input" for methods that look at the images alone."""

RANDOM = "random"
CONTROLS = (RANDOM, "sobel", "center")
"""Maps that know nothing of the decision: random channel weights, the image's edges, its middle."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ComparisonContext:
    """What is compared: methods and layers on one network and some images, all asked about the predicted class.

    Attributes:
        model: the network, in eval mode.
        images: (B, C, H, W) floats in [0, 1], of the network's size.
        preprocess: makes network input of them.
        layers: names.
        methods: resolved.
        seed: of everything drawn.
        batch_size: images at a time.
    """

    model: nn.Module
    images: Tensor
    preprocess: Preprocessing
    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    seed: int = 0
    batch_size: int = 64
    _made: dict[object, Any] = field(init=False, repr=False, default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """(B, K).

        Raises:
            WhycamError: the network answers otherwise, or K is 1.
        """
        with torch.no_grad():
            found = [
                first_tensor(self.model(self.preprocess(some))) for some in torch.split(self.images, self.batch_size)
            ]
        logits = [answer for answer in found if answer is not None and answer.ndim == 2]
        if logits and logits[0].shape[1] == 1:
            raise WhycamError(
                "the network has a single logit, whose softmax is 1 whatever it is shown: compare on one that "
                "answers with two, torch.cat([torch.zeros_like(z), z], dim=1) of the single one z"
            )
        if len(logits) < len(found):
            raise WhycamError("methods are compared on a predicted class, and this network has no (B, K) logits")
        return torch.cat(logits).float()

    @cached_property
    def classes(self) -> Tensor:
        """(B,) the predicted ones: what every map is asked about, also after the image has been altered."""
        return self.logits.argmax(dim=1)

    @cached_property
    def maps(self) -> dict[Key, Tensor]:
        """Every signed map, (B, h, w); one that is not finite counts as no evidence anywhere (see `broken`)."""
        return {key: only_finite(found) for key, found in self._found.items()}

    @cached_property
    def broken(self) -> dict[Key, int]:
        """How many maps are not finite."""
        return {key: int((~finite(found)).sum()) for key, found in self._found.items()}

    @property
    def blank(self) -> dict[Key, int]:
        """How many maps are the same everywhere, those that are not finite left aside."""
        return {key: int(flat(found).sum()) for key, found in self._found.items()}

    @cached_property
    def _found(self) -> dict[Key, Tensor]:
        return self.explained(self.model, self.images, self.classes)

    @property
    def seeds(self) -> list[int]:
        """One an image, from its place."""
        return [derive_seed("context", self.seed, place) for place in range(len(self.images))]

    def explained(
        self, model: nn.Module, images: Tensor, classes: Tensor, only: Key | None = None
    ) -> dict[Key, Tensor]:
        """Maps of the first n images or of altered ones, by this or another network.

        Random weights are drawn for each image anew: with the same for all, whether a method beats them would be a
        matter of that one draw.

        Args:
            model: the network.
            images: (n, C, H, W) in [0, 1].
            classes: (n,) what is asked about.
            only: the map that is wanted, by default all.

        Returns:
            key → (n, h, w).
        """
        methods: Sequence[Method] = self.methods
        layers = self.layers
        if only is not None:
            methods = [method for method in methods if method.name == only[0]]
            layers = (only[1],) if only[1] in layers else layers
        found: dict[Key, list[Tensor]] = {}

        def explain(these: Sequence[Method], rows: slice, seed: int) -> None:
            explained = Explainer(model, layers, these, seed=seed)(self.preprocess(images[rows]), classes[rows])
            for (method, layer, _), raw in explained.maps.items():
                found.setdefault((method, layer), []).append(raw)

        if settled := [method for method in methods if method.name != RANDOM]:
            for start in range(0, len(images), self.batch_size):
                explain(settled, slice(start, start + self.batch_size), self.seed)
        if drawn := [method for method in methods if method.name == RANDOM]:
            for place, seed in enumerate(self.seeds[: len(images)]):
                explain(drawn, slice(place, place + 1), seed)
        return {key: torch.cat(parts) for key, parts in found.items()}

    def again(self, key: Key) -> Callable[[Tensor], Tensor]:
        """How one of the maps is made, of the images after they were altered: (B, C, H, W) → (B, h, w)."""

        def explain(altered: Tensor) -> Tensor:
            return only_finite(self.explained(self.model, altered, self.classes, key)[key])

        return explain

    def once(self, what: object, make: Callable[[], T]) -> T:
        """``make()``, made at the first call with this ``what`` and kept for the others."""
        if what not in self._made:
            self._made[what] = make()
        made: T = self._made[what]
        return made

    def change(self, key: Key) -> ConfidenceChange:
        """What becomes of the probability on the image times its map."""
        return self.once(
            ("change", key),
            lambda: confidence_change(self.model, self.images, self.maps[key], self.classes,
                                      preprocess=self.preprocess, batch_size=self.batch_size),
        )  # fmt: skip

    def coherency(self, key: Key) -> Tensor:
        """How alike the map of the image times its map is."""
        return self.once(("coherency", key), lambda: coherency(self.again(key), self.images, self.maps[key]))

    def complexity(self, key: Key) -> Tensor:
        """How much of the image is lit."""
        return complexity(heatmaps(self.maps[key], self.images.shape[2:]))


def flat(maps: Tensor) -> Tensor:
    """(B, …) → (B,) bool: which maps are the same everywhere, and so put nothing before anything else."""
    values = maps.flatten(1)
    return values.amin(dim=1) == values.amax(dim=1)
