"""`Explanation`: the raw maps of a batch, with the scores and inputs that belong to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from whycam.cam.maps import Aggregation, Flag, Interpolation, Key, aggregate, flags_of, heatmaps
from whycam.errors import WhycamError, near_misses
from whycam.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whycam.cam.methods.registry import MethodLike

_SEPARATOR = "|"


@dataclass(frozen=True, eq=False)
class Explanation:
    """The maps of one batch of images, for all methods, layers and targets of one capture.

    Maps are raw: signed, unscaled, at the layer's own resolution, on the model's device.

    Attributes:
        maps: (method, layer, target) → (B, h, w).
        logits: (B, K).
        scores: target → (B,), the scores that are explained.
        inputs: (B, C, H, W), the images as the model got them.
        channels: layer → C, its number of channels.
    """

    maps: Mapping[Key, Tensor]
    logits: Tensor
    scores: Mapping[str, Tensor]
    inputs: Tensor
    channels: Mapping[str, int]

    @property
    def predicted(self) -> Tensor:
        """(B,) index of the largest logit.

        Raises:
            WhycamError: the network does not return (B, K) logits.
        """
        if self.logits.ndim != 2 or not self.logits.shape[1]:
            raise WhycamError(f"the network's output is {tuple(self.logits.shape)}: no class is predicted")
        return self.logits.argmax(dim=1)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' names."""
        return tuple(dict.fromkeys(key[0] for key in self.maps))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, as the user wrote them."""
        return tuple(dict.fromkeys(key[1] for key in self.maps))

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets' names."""
        return tuple(dict.fromkeys(key[2] for key in self.maps))

    @property
    def flags(self) -> dict[Key, list[tuple[Flag, ...]]]:
        """(method, layer, target) → flags of each image's map, such as "coarse"; see `whycam.cam.maps.flags_of`."""
        return {key: flags_of(raw) for key, raw in self.maps.items()}

    def map(self, method: MethodLike | None = None, layer: str | None = None, target: str | None = None) -> Tensor:
        """The raw map (B, h, w): signed, at the layer's own resolution.

        A name may be left out if there is only one method, layer or target.

        Raises:
            WhycamError: no map or several maps match.
        """
        return self.maps[self._key(method, layer, target)]

    def range(
        self, method: MethodLike | None = None, layer: str | None = None, target: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each raw map's smallest and largest value, (B,) each; a `heatmap` no longer shows them."""
        flat = self.map(method, layer, target).flatten(1)
        return flat.amin(dim=1), flat.amax(dim=1)

    def heatmap(
        self,
        method: MethodLike | None = None,
        layer: str | None = None,
        target: str | None = None,
        *,
        scale: Tensor | float | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> Tensor:
        """Positive evidence on [0, 1] at the image's size, (B, H, W); see `whycam.cam.maps.heatmaps`."""
        raw = self.map(method, layer, target)
        return heatmaps(raw, self.inputs.shape[2:], scale=scale, interpolation=interpolation)

    def aggregate(
        self,
        method: MethodLike | None = None,
        layers: Sequence[str] | None = None,
        target: str | None = None,
        *,
        how: Aggregation = "mean",
        size: Literal["finest", "image"] | Sequence[int] = "finest",
    ) -> Tensor:
        """One heatmap of several layers, (B, h, w) in [0, 1]; see `whycam.cam.maps.aggregate`.

        Args:
            method: may be left out if there is only one.
            layers: by default all layers that the method has a map of.
            target: may be left out if there is only one.
            how: "mean", "max" or "product" over the layers.
            size: "finest" for the finest layer's size, "image" for the image's, or (h, w).

        Raises:
            WhycamError: there is no such map.
        """
        name, _, target = self._key(method, layers[0] if layers else self.layers[0], target)
        if layers is None:
            layers = [key[1] for key in self.maps if key[0] == name and key[2] == target]
        maps = [self.maps[self._key(method, layer, target)] for layer in layers]
        if isinstance(size, str) and size not in ("finest", "image"):
            raise WhycamError(f"size is 'finest', 'image' or (h, w), not {size!r}")
        if size == "image":
            size = tuple(self.inputs.shape[2:])
        return aggregate(maps, how, None if size == "finest" else size)

    def plot(self, index: int = 0, *, colormap: str = "viridis", signed: bool = False) -> Figure:
        """One image's maps as a matplotlib figure; see `whycam.cam.display.plot_explanation`."""
        from whycam.cam.display import plot_explanation

        return plot_explanation(self, index, colormap=colormap, signed=signed)

    def save(self, path: str | Path) -> Path:
        """Write maps, logits, scores and inputs to one ``.safetensors`` file, which `load_explanation` reads.

        Raises:
            WhycamError: the file cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        tensors = {_SEPARATOR.join(("map", *key)): raw for key, raw in self.maps.items()}
        tensors |= {_SEPARATOR.join(("score", target)): score for target, score in self.scores.items()}
        tensors |= {"logits": self.logits, "inputs": self.inputs}
        content = save(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()},
            metadata={"channels": json.dumps(dict(self.channels)), "order": json.dumps(list(self.maps))},
        )
        write_bytes(path, content)
        return path

    def __repr__(self) -> str:
        return (
            f"Explanation({len(self.logits)} images; methods: {', '.join(self.methods)}; "
            f"layers: {', '.join(self.layers)}; targets: {', '.join(self.targets)})"
        )

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows."""
        from whycam.cam.display import explanation_html

        return explanation_html(self)

    def _key(self, method: MethodLike | None, layer: str | None, target: str | None) -> Key:
        from whycam.cam.methods.registry import Method, canonical

        name = method.name if isinstance(method, Method) else canonical(method) if method is not None else None
        names = (name, layer, target)
        keys = list(self.maps)
        # First the parts that are given: they narrow down the rest, because a method may have a map of one layer only.
        for part in sorted(range(3), key=lambda part: names[part] is None):
            known = tuple(dict.fromkeys(key[part] for key in keys))
            chosen = _choose(("method", "layer", "target")[part], names[part], known)
            keys = [key for key in keys if key[part] == chosen]
        return keys[0]


def load_explanation(path: str | Path) -> Explanation:
    """Read what `Explanation.save` wrote; tensors are on the CPU.

    Raises:
        WhycamError: the file is missing, damaged or not an explanation.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        order = [tuple(key) for key in json.loads(metadata["order"])]
        maps = {(m, layer, t): tensors[_SEPARATOR.join(("map", m, layer, t))] for m, layer, t in order}
        targets = dict.fromkeys(key[2] for key in maps)
        return Explanation(
            maps=maps,
            logits=tensors["logits"],
            scores={target: tensors[_SEPARATOR.join(("score", target))] for target in targets},
            inputs=tensors["inputs"],
            channels=json.loads(metadata["channels"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WhycamError(f"{path}: not an explanation that whycam saved ({error})") from error


def _choose(what: str, name: str | None, known: tuple[str, ...]) -> str:
    if name is None:
        if len(known) == 1:
            return known[0]
        raise WhycamError(f"this explanation has several {what}s; name one of {', '.join(known)}")
    if name not in known:
        raise WhycamError(f"this explanation has no {what} {name!r}{near_misses(name, known)}")
    return name
