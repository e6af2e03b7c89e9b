"""How faithful the study's maps are: ROAD for every layer and method on a sample of the errors, beside controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
from whycam.study.shards import read_table

SEED = 0
"""Of the sample, the noise control, tie-breaks, noise in filled pixels and bootstrap draws."""
NOISE, CENTER = "noise", "center"
CONTROLS = (NOISE, CENTER)
"""Maps that know nothing of the decision; their rows carry the layer "input"."""
TARGET = "predicted"

SCORES = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("layer", pa.string()),  # "input" for the controls
        ("method", pa.string()),  # "noise" and "center" are the controls
        ("target", pa.string()),
        ("class_index", pa.int16()),
        ("before", pa.float32()),  # probability of the class on the image as it is
        # Mean probability over the percentiles without the most and without the least relevant pixels; null where the
        # map is not finite.
        ("morf", pa.float32()),
        ("lerf", pa.float32()),
        ("combined", pa.float32()),  # (lerf − morf) / 2
    ]
)


def sampled(errors: IndexArray, count: int) -> IndexArray:
    """At most ``count`` of the errors' positions, drawn without replacement, in their order."""
    if count >= len(errors):
        return errors
    drawn = torch.randperm(len(errors), generator=generator("scores", SEED))[:count]
    return np.sort(errors[drawn.numpy()]).astype(np.int64)


class Scorer:
    """Scores a study's maps.

    Args:
        model: the study's network.
        preprocess: what it expects.
        layers: names and grids, as the manifest lists them.
        methods: their names.
        predictions: the study's, one row per image.
        maps: the study's, on disk; only the rows of ``chosen`` are kept.
        chosen: positions of the errors to score.
        batch_size: altered images at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        layers: Sequence[dict[str, Any]],
        methods: Sequence[str],
        predictions: pa.Table,
        maps: Path,
        chosen: IndexArray,
        batch_size: int,
    ) -> None:
        self._model, self._preprocess, self._batch_size = model, preprocess, batch_size
        self._layers, self._methods, self._predictions = layers, methods, predictions
        columns = ("index", "method", "layer", "target", "height", "width", "values")
        table = read_table(maps, columns)
        wanted = pc.and_(pc.equal(table["target"], TARGET), pc.is_in(table["index"], pa.array(chosen, pa.int32())))
        self._maps = {
            (row["index"], row["layer"], row["method"]): torch.tensor(row["values"], dtype=torch.float32).view(
                row["height"], row["width"]
            )
            for row in table.filter(wanted).to_pylist()
        }

    def rows(self, indices: IndexArray, ids: Sequence[str], pixels: Tensor) -> pa.Table:
        """The table's rows of some images, images outermost; ``pixels`` is (B, 3, H, W) uint8."""
        images = resize_center_crop(pixels.float() / 255, self._preprocess.size).clamp(0, 1)
        predicted = self._predictions["predicted"].to_numpy().astype(np.int64)[indices]
        before = self._predictions["confidence"].to_numpy()[indices]
        tables = []
        for layer, method, maps in self._candidates(indices, images):
            ranked = finite(maps)
            scores = self._road(images, maps, torch.from_numpy(predicted), indices, ranked)
            known = {
                "morf": scores.morf.mean(dim=1), "lerf": scores.lerf.mean(dim=1), "combined": scores.combined
            }  # fmt: skip
            columns: dict[str, Any] = {
                "index": indices, "id": list(ids), "layer": [layer] * len(ids), "method": [method] * len(ids),
                "target": [TARGET] * len(ids), "class_index": predicted, "before": before,
            }  # fmt: skip
            for name, values in known.items():
                spread = torch.zeros(len(ids), dtype=values.dtype).masked_scatter_(ranked, values.cpu())
                columns[name] = np.ma.masked_array(spread.numpy(), (~ranked).numpy())
            arrays = [pa.array(columns[field.name], type=field.type, safe=False) for field in SCORES]
            tables.append(pa.table(arrays, schema=SCORES))
        table = pa.concat_tables(tables)
        order = np.argsort(np.tile(np.arange(len(ids)), len(tables)), kind="stable")
        return table.take(pa.array(order))

    def _candidates(self, indices: IndexArray, images: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """(layer, method, (B, h, w)): the study's maps, then the controls."""
        for method in self._methods:
            for layer in self._layers:
                name = layer["name"]
                yield name, method, torch.stack([self._maps[int(index), name, method] for index in indices])
        # As coarse as the coarsest layer: scattered pixels are filled in almost perfectly, so that finer noise would
        # vary less and be told apart more easily.
        grid = min(((layer["height"], layer["width"]) for layer in self._layers), key=lambda size: size[0] * size[1])
        draws = [generator("scores", SEED, "noise", int(index)) for index in indices]
        yield INPUT, NOISE, torch.stack([torch.randn(grid, generator=draw) for draw in draws])
        nothing = images.new_empty(0)
        yield INPUT, CENTER, METHODS[CENTER](LayerTrace(images, nothing, nothing, nothing))

    def _road(self, images: Tensor, maps: Tensor, targets: Tensor, indices: IndexArray, use: Tensor) -> Road:
        device = next(self._model.parameters()).device
        return road(
            self._model, images[use].to(device), maps[use].to(device), targets[use], preprocess=self._preprocess,
            seed=[derive_seed("scores", SEED, int(index)) for index in indices[use.numpy()]],
            batch_size=self._batch_size,
        )  # fmt: skip


def summarize_scores(scores: pa.Table) -> list[dict[str, Any]]:
    """One entry per method and layer, the controls last: means, the interval of the combined score, and a verdict.

    ``verdict`` is "above" or "below" where the interval lies above or below that of the noise control, "unclear" where
    the two overlap or there are fewer than two images, None for the controls themselves.
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
    """Whether an entry of `summarize_scores` is of one of these controls, of any where none is named."""
    return entry["layer"] == INPUT and entry["method"] in (names or CONTROLS)


def _verdict(interval: list[float] | None, noise: list[float] | None) -> str:
    if interval is None or noise is None:
        return "unclear"
    return "above" if interval[0] > noise[1] else "below" if interval[1] < noise[0] else "unclear"
