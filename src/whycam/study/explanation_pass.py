"""The pass that reads every explained or shown image once and makes all rows that need its pixels or maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from whycam.cam.explain import Explainer
from whycam.cam.explanation import Explanation
from whycam.data.preprocess import Preprocess
from whycam.data.source import ImageSource, IndexArray
from whycam.progress import Progress
from whycam.study.neighbors import reduced
from whycam.study.road_scores import TARGET, Scorer
from whycam.study.shards import assemble, write_missing_shards
from whycam.study.tables import IMAGES, MAPS, SCORES, image_rows, map_rows, stored_values

EXPLANATIONS_PER_SHARD = 256  # a kill costs at most the work on so many images
Rows = dict[str, pa.Table]


@dataclass(frozen=True, eq=False)
class ExplanationPass:
    """Writes the tables of maps, images and scores, from one read of each image.

    Attributes:
        source: the data.
        preprocess: turns pixels into the network's input.
        explainer: the network with the study's layers and methods.
        scorer: scores maps; None for a study without scores.
        predicted: (N,) predicted classes of all images.
        errors: positions of the errors; all are shown, and explained for the predicted and the true class.
        scored: positions of the errors whose maps are scored.
        baseline: positions of the correct predictions that are explained for their class.
        neighbors: positions of the correct predictions that are shown.
        batch_size: images at a time.
    """

    source: ImageSource
    preprocess: Preprocess
    explainer: Explainer
    scorer: Scorer | None
    predicted: IndexArray
    errors: IndexArray
    scored: IndexArray
    baseline: IndexArray
    neighbors: IndexArray
    batch_size: int

    def write(self, out: Path, shards: Path, progress: Progress) -> None:
        """Write the tables that ``out`` lacks, through shards that a resumed run continues.

        Args:
            out: the study folder.
            shards: the folder of the shards.
            progress: told ("explain", images done, all images).
        """
        correct = np.union1d(self.baseline, self.neighbors)
        total, before = len(self.errors) + len(correct), 0
        tables = {"maps": MAPS, "images": IMAGES} | ({"scores": SCORES} if self.scorer is not None else {})
        missing = {name: table for name, table in tables.items() if not table.path(out).exists()}
        parts: dict[str, list[Path]] = {}
        groups = (("errors", self.errors, self._error_rows), ("correct", correct, self._correct_rows))
        for group, chosen, rows in groups if missing else ():
            compute = self._batches(group, chosen, rows, partial(_tell, progress, before, total))
            named = {f"{group}-{name}": table for name, table in tables.items()}
            parts |= write_missing_shards(shards, named, len(chosen), EXPLANATIONS_PER_SHARD, compute)
            before += len(chosen)
        for name, table in missing.items():
            assemble(out, table, [*parts[f"errors-{name}"], *parts[f"correct-{name}"]])
        progress("explain", total, total)

    def _batches(
        self, group: str, chosen: IndexArray, rows: Callable[[IndexArray], Rows], told: Callable[[int], None]
    ) -> Callable[[range], Iterator[Rows]]:
        """A function from a block of ``chosen`` to the rows of its shards, batch after batch."""

        def compute(block: range) -> Iterator[Rows]:
            for start in range(block.start, block.stop, self.batch_size):
                stop = min(start + self.batch_size, block.stop)
                yield {f"{group}-{name}": table for name, table in rows(chosen[start:stop]).items()}
                told(stop)

        return compute

    def _error_rows(self, indices: IndexArray) -> Rows:
        """Maps for the predicted and the true class, the images, and the scores of the sampled errors."""
        pixels = self.source.read(indices)
        inputs = self.preprocess(pixels.to(self._device))
        explained, maps = self._explain(indices, inputs, ("predicted", "true"))
        rows = {"maps": maps, "images": image_rows(indices, self._ids(indices), self._shown(pixels))}
        chosen = np.isin(indices, self.scored)
        if self.scorer is not None and chosen.any():
            use = torch.from_numpy(chosen)
            # The scores are those of the maps as stored, in half precision.
            stored = {
                (method, layer): stored_values(raw.float().cpu()[use])[0].float()
                for (method, layer, target), raw in explained.maps.items()
                if target == TARGET
            }
            rows["scores"] = self.scorer.rows(indices[chosen], self._ids(indices[chosen]), pixels[use], stored)
        return rows

    def _correct_rows(self, indices: IndexArray) -> Rows:
        """Maps for the predicted class of the baseline, and the reduced images of the neighbors."""
        pixels = self.source.read(indices)
        inputs = self.preprocess(pixels.to(self._device))
        rows: Rows = {}
        explain, show = np.isin(indices, self.baseline), np.isin(indices, self.neighbors)
        if explain.any():
            use = torch.from_numpy(explain).to(self._device)
            _, rows["maps"] = self._explain(indices[explain], inputs[use], ("predicted",))
        if show.any():
            shown = self._shown(pixels[torch.from_numpy(show)])
            rows["images"] = image_rows(indices[show], self._ids(indices[show]), reduced(shown))
        return rows

    def _explain(self, indices: IndexArray, inputs: Tensor, targets: Sequence[str]) -> tuple[Explanation, pa.Table]:
        known = {"predicted": self.predicted, "true": self.source.labels}
        classes = {name: np.asarray(known[name][indices], dtype=np.int64) for name in targets}
        explained = self.explainer(inputs, {name: torch.from_numpy(index) for name, index in classes.items()})
        return explained, map_rows(indices, self._ids(indices), classes, explained)

    def _shown(self, pixels: Tensor) -> Tensor:
        """The pixels as the network sees them, computed on the CPU: a GPU may round them to another level."""
        return self.preprocess.invert(self.preprocess(pixels))

    @property
    def _device(self) -> torch.device:
        return next(self.explainer.model.parameters()).device

    def _ids(self, indices: IndexArray) -> list[str]:
        return [self.source.ids[int(index)] for index in indices]


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress("explain", before + done, total)
