"""How faithful the study's maps are: ROAD of every layer and method on a sample of the errors, and of two controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from whycam.cam.maps import finite
from whycam.cam.methods import METHODS
from whycam.cam.passes.trace import INPUT, LayerTrace
from whycam.data.preprocess import Preprocess, resize_center_crop
from whycam.data.source import IndexArray
from whycam.metrics.faithfulness.road import PERCENTILES, Road, road
from whycam.metrics.statistics import bootstrap_interval
from whycam.seeds import derive_seed, generator
from whycam.study.tables import SCORES, images_outermost

SEED = 0
"""Of the sample, the noise control, the order of equal values, the noise in filled pixels and the bootstrap."""
NOISE, CENTER = "noise", "center"
CONTROLS = (NOISE, CENTER)
"""Maps that do not depend on the decision; their rows carry the layer "input"."""
TARGET = "predicted"


def sampled(errors: IndexArray, count: int) -> IndexArray:
    """At most ``count`` of the errors' positions, drawn without replacement, in their order."""
    if count >= len(errors):
        return errors
    drawn = torch.randperm(len(errors), generator=generator("scores", SEED))[:count]
    return np.sort(errors[drawn.numpy()]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores maps by ROAD.

    Attributes:
        model: the study's network.
        preprocess: turns pixels into its input.
        layers: names and map sizes, as the manifest lists them.
        methods: names of methods.
        predictions: the study's, one row per image.
        batch_size: number of altered images in a forward pass.
    """

    model: nn.Module
    preprocess: Preprocess
    layers: Sequence[Mapping[str, Any]]
    methods: Sequence[str]
    predictions: pa.Table
    batch_size: int

    def rows(
        self, indices: IndexArray, ids: Sequence[str], pixels: Tensor, maps: Mapping[tuple[str, str], Tensor]
    ) -> pa.Table:
        """One row per image, layer and method, controls last, images outermost.

        Args:
            indices: (B,) positions in the data set.
            ids: their names.
            pixels: (B, 3, H, W) uint8.
            maps: (method, layer) → (B, h, w) float32 maps of the predicted class.
        """
        images = resize_center_crop(pixels.float() / 255, self.preprocess.size).clamp(0, 1)
        predicted = self.predictions["predicted"].to_numpy().astype(np.int64)[indices]
        tables = []
        for layer, method, ranking in self._rankings(indices, images, maps):
            ranked = finite(ranking)
            road_scores = self._road(images, ranking, torch.from_numpy(predicted), indices, ranked)
            rows = SCORES.build(
                indices, ids, layer=layer, method=method, target=TARGET, class_index=predicted,
                before=self.predictions["confidence"].to_numpy()[indices],
                morf=_with_gaps(road_scores.morf.mean(dim=1), ranked),
                lerf=_with_gaps(road_scores.lerf.mean(dim=1), ranked),
                combined=_with_gaps(road_scores.combined, ranked),
            )  # fmt: skip
            tables.append(rows)
        return images_outermost(tables)

    def _rankings(
        self, indices: IndexArray, images: Tensor, maps: Mapping[tuple[str, str], Tensor]
    ) -> Iterator[tuple[str, str, Tensor]]:
        """(layer, method, (B, h, w)): the study's maps, then the controls."""
        for method in self.methods:
            for layer in self.layers:
                yield layer["name"], method, maps[method, layer["name"]]
        # As coarse as the coarsest layer. Single scattered pixels are filled in almost perfectly, so finer noise would
        # vary less and would be easier to beat.
        grid = min(((layer["height"], layer["width"]) for layer in self.layers), key=lambda size: size[0] * size[1])
        draws = [generator("scores", SEED, "noise", int(index)) for index in indices]
        yield INPUT, NOISE, torch.stack([torch.randn(grid, generator=draw) for draw in draws])
        nothing = images.new_empty(0)
        yield INPUT, CENTER, METHODS[CENTER](LayerTrace(images, nothing, nothing, nothing))

    def _road(self, images: Tensor, maps: Tensor, targets: Tensor, indices: IndexArray, use: Tensor) -> Road:
        device = next(self.model.parameters()).device
        return road(
            self.model, images[use].to(device), maps[use].to(device), targets[use], preprocess=self.preprocess,
            seed=[derive_seed("scores", SEED, int(index)) for index in indices[use.numpy()]],
            batch_size=self.batch_size,
        )  # fmt: skip


def _with_gaps(values: Tensor, ranked: Tensor) -> np.ma.MaskedArray[Any, Any]:
    """Spread values of the ranked maps over all maps; the others are masked, which Arrow stores as null."""
    spread = torch.zeros(len(ranked), dtype=values.dtype).masked_scatter_(ranked, values.cpu())
    return np.ma.masked_array(spread.numpy(), (~ranked).numpy())


def summarize_scores(scores: pa.Table) -> list[dict[str, Any]]:
    """One entry per method and layer, the controls last: means, the interval of the combined score, and a verdict.

    ``verdict`` is "above" or "below" if the interval lies above or below that of the noise control, "unclear" if the
    two overlap or there are fewer than two images, and None for the controls.
    """
    keys = list(zip(scores["method"].to_pylist(), scores["layer"].to_pylist(), strict=True))
    entries = []
    for method, layer in dict.fromkeys(keys):
        mine = scores.filter(pc.and_(pc.equal(scores["method"], method), pc.equal(scores["layer"], layer)))
        used = mine.drop_null()
        means = {name: float(np.mean(used[name].to_numpy(), dtype=np.float64)) if len(used) else None
                 for name in ("combined", "morf", "lerf", "before")}  # fmt: skip
        combined = torch.from_numpy(used["combined"].to_numpy().astype(np.float64))
        interval = list(bootstrap_interval(combined, seed=SEED)) if len(used) > 1 else None
        entries.append(
            {"method": method, "layer": layer, "n": len(used), "unranked": len(mine) - len(used), **means,
             "interval": interval, "percentiles": list(PERCENTILES), "verdict": None}
        )  # fmt: skip
    noise = next((entry["interval"] for entry in entries if is_control(entry, NOISE)), None)
    for entry in entries:
        if not is_control(entry):
            entry["verdict"] = _verdict(entry["interval"], noise)
    return entries


def is_control(entry: Mapping[str, Any], *names: str) -> bool:
    """Whether an entry of `summarize_scores` is of one of the named controls, or of any if none is named."""
    return entry["layer"] == INPUT and entry["method"] in (names or CONTROLS)


def _verdict(interval: list[float] | None, noise: list[float] | None) -> str:
    if interval is None or noise is None:
        return "unclear"
    return "above" if interval[0] > noise[1] else "below" if interval[1] < noise[0] else "unclear"
