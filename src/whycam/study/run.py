"""The main job: predict → errors → their neighbors → explain → score → measure → a study folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from whycam.cam.explain import Explainer
from whycam.cam.methods import resolve_methods
from whycam.cam.network.layers import resolve_layers
from whycam.data.source import ImageSource, IndexArray
from whycam.errors import WhycamError
from whycam.models.checkpoint import ModelSpec, check_classes
from whycam.nn_utils import unwrapped
from whycam.progress import Progress, quiet
from whycam.study import manifest as manifests
from whycam.study.config import Config
from whycam.study.default_layers import check_grids, chosen_layers
from whycam.study.features import Head, features_of, find_head
from whycam.study.folder import (
    MANIFEST,
    METRICS,
    OPTIONAL,
    PARTS,
    TABLES,
    Study,
    claim,
    write_json,
)
from whycam.study.neighbors import reduced
from whycam.study.predict import logits_of
from whycam.study.road_scores import SCORES, SEED, Scorer, sampled
from whycam.study.shards import assemble, read_table, write_missing
from whycam.study.similarity import relate, shown_neighbors, with_features
from whycam.study.summary import measure
from whycam.study.tables import IMAGES, MAPS, PREDICTIONS, image_rows, map_rows, prediction_rows

# What a kill costs at most: about this many images' work is done again.
PREDICTIONS_PER_PART = 2048
EXPLANATIONS_PER_PART = 256
SCORES_PER_PART = 16

_Rows = Callable[[range], Iterator[pa.Table]]


def run_study(
    model: nn.Module,
    spec: ModelSpec,
    source: ImageSource,
    out: str | Path,
    config: Config | None = None,
    *,
    progress: Progress = quiet,
    publish: Callable[[Study], object] | None = None,
) -> Study:
    """Explain every error of ``model`` on ``source`` for its predicted and its true class, and some right predictions.

    Killed at any moment, ``out`` holds a study that says it is incomplete; the same call continues it. A finished one
    is returned as it is.

    Args:
        model: a network; afterwards as it was. A compiled or ``DataParallel`` one is studied as the network inside,
            since neither features nor activations can be read through the wrapper.
        spec: its classes, preprocessing and digest.
        source: labeled images.
        out: a folder: new, empty, or holding this very study, finished or not.
        config: layers, methods, batch size.
        progress: told (stage, done, total).
        publish: called with the study when its tables are done and before it calls itself complete, to add what people
            look at.

    Raises:
        WhycamError: the folder holds something else or cannot be written, a layer or method is unknown, or the data
            do not fit the network.
    """
    return _Run(unwrapped(model), spec, source, Path(out), config or Config(), progress, publish).run()


@dataclass(frozen=True, eq=False)
class _Run:
    model: nn.Module
    spec: ModelSpec
    source: ImageSource
    out: Path
    config: Config
    progress: Progress
    publish: Callable[[Study], object] | None

    def run(self) -> Study:
        check_classes(self.spec, self.source)
        if not len(self.source):
            raise WhycamError(f"{self.source.name}: there is no image to study")
        description = self.description  # refuses unknown layers and methods before anything is written
        before = claim(self.out, description["key"])
        if before is not None and before["status"] == "complete":
            return Study.load(self.out)
        timings: dict[str, float] = dict(before["timings"]) if before else {}
        manifest = description | {"status": "incomplete", "timings": timings}
        for stage in (self._predict, self._relate, self._explain, self._score, self._measure):
            name = stage.__name__.lstrip("_")
            write_json(self.out / MANIFEST, manifest | {"stage": name})
            start = time.perf_counter()
            stage()
            timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - start, 3)
        manifest |= {"files": manifests.digests(self.out), "peak_memory_mib": manifests.peak_memory_mib()}
        if self.publish is not None:
            write_json(self.out / MANIFEST, manifest | {"stage": "publish"})
            metrics = json.loads((self.out / METRICS).read_bytes())
            self.publish(Study(self.out, manifest | {"status": "complete", "stage": "complete"}, metrics))
        # Parts go first: a kill in between leaves an incomplete study whose tables are all there.
        shutil.rmtree(self._parts)
        write_json(self.out / MANIFEST, manifest | {"status": "complete", "stage": "complete"})
        return Study.load(self.out)

    @property
    def _parts(self) -> Path:
        return self.out / PARTS

    @cached_property
    def layers(self) -> tuple[str, ...]:
        if self.config.layers is not None:
            return self.config.layers
        return chosen_layers(self.model, self._first_input)

    @cached_property
    def _first_input(self) -> torch.Tensor:
        device = next(self.model.parameters()).device
        return self.spec.preprocess(self.source.read([0]).to(device))

    @cached_property
    def _head(self) -> Head | None:
        return find_head(self.model, self._first_input)

    @cached_property
    def description(self) -> dict[str, Any]:
        """All of the manifest that is known beforehand."""
        resolved = resolve_layers(self.model, self.layers)
        methods = resolve_methods(self.config.methods)
        # One image through everything: what cannot work is said before hours are spent.
        trial = Explainer(self.model, self.layers, methods)(self._first_input)
        config = {
            "layers": list(self.layers),
            "methods": [method.name for method in methods],
            "targets": ["predicted", "true"],
            "limit": self.config.limit,
            "split": self.source.split,
            "batch_size": self.config.batch_size,
            "baseline": self.config.baseline,
            "score_images": self.config.score_images,
        }
        check_grids(methods, trial)
        layers = [
            {
                "name": layer.name,
                "path": layer.path,
                "channels": trial.channels[layer.name],
                "height": trial.map(methods[0], layer.name).shape[1],
                "width": trial.map(methods[0], layer.name).shape[2],
            }
            for layer in resolved
        ]
        features = {"layer": self._head.path, "length": self._head.features} if self._head is not None else None
        return manifests.describe(self.model, self.spec, self.source, config, layers) | {
            "features": features,
            "seed": SEED if self.config.score_images else None,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _predict(self) -> None:
        def rows(positions: range) -> Iterator[pa.Table]:
            preprocess, size = self.spec.preprocess, self.config.batch_size
            with features_of(self.model, self._head) as features:
                for batch, logits in logits_of(self.model, preprocess, self.source, positions, size):
                    indices = np.asarray(batch, dtype=np.int64)
                    table = prediction_rows(indices, self._ids(indices), self.source.labels[indices], logits)
                    yield with_features(table, features.pop()) if features else table
                    self.progress("predict", batch.stop, len(self.source))

        # Kept until the study is complete: what is compared next is read from these parts.
        parts = write_missing(self._parts, "forward", len(self.source), PREDICTIONS_PER_PART, rows)
        self.progress("predict", len(self.source), len(self.source))
        if not (self.out / TABLES["predictions"]).exists():
            assemble(self.out / TABLES["predictions"], parts, PREDICTIONS)

    def _relate(self) -> None:
        if self._head is None:
            return
        parts = sorted(self._parts.glob("forward-*.parquet"))
        relate(parts, self.out, self._ids, self.progress)

    def _explain(self) -> None:
        table = read_table(self.out / TABLES["predictions"])
        wrong = np.flatnonzero(~table["correct"].to_numpy())
        right = _first_of_each(table, self.config.baseline)
        predicted = table["predicted"].to_numpy()
        explainer = Explainer(self.model, self.layers, self.config.methods)
        device = next(self.model.parameters()).device
        total = len(wrong) + len(right)

        def maps(chosen: IndexArray, targets: Sequence[str], before: int) -> _Rows:
            def rows(positions: range) -> Iterator[pa.Table]:
                done = before + positions.start
                for indices in self._batches(chosen, positions):
                    classes = {
                        "predicted": predicted[indices].astype(np.int64),
                        "true": np.asarray(self.source.labels[indices], dtype=np.int64),
                    }
                    classes = {name: classes[name] for name in targets}
                    inputs = self.spec.preprocess(self.source.read(indices).to(device))
                    explained = explainer(inputs, {name: torch.from_numpy(index) for name, index in classes.items()})
                    yield map_rows(indices, self._ids(indices), classes, explained)
                    done += len(indices)
                    self.progress("explain", done, total)

            return rows

        def images(chosen: IndexArray, finish: Callable[[torch.Tensor], torch.Tensor]) -> _Rows:
            def rows(positions: range) -> Iterator[pa.Table]:
                for indices in self._batches(chosen, positions):
                    pixels = self.spec.preprocess.invert(self.spec.preprocess(self.source.read(indices)))
                    yield image_rows(indices, self._ids(indices), finish(pixels))

            return rows

        if not (self.out / TABLES["maps"]).exists():
            both = maps(wrong, ("predicted", "true"), 0), maps(right, ("predicted",), len(wrong))
            parts = write_missing(self._parts, "maps", len(wrong), EXPLANATIONS_PER_PART, both[0])
            parts += write_missing(self._parts, "baseline", len(right), EXPLANATIONS_PER_PART, both[1])
            assemble(self.out / TABLES["maps"], parts, MAPS)
        if not (self.out / TABLES["images"]).exists():
            near = shown_neighbors(self.out)
            as_seen, small = images(wrong, lambda pixels: pixels), images(near, reduced)
            parts = write_missing(self._parts, "images", len(wrong), EXPLANATIONS_PER_PART, as_seen)
            parts += write_missing(self._parts, "neighbors", len(near), EXPLANATIONS_PER_PART, small)
            assemble(self.out / TABLES["images"], parts, IMAGES)
        self.progress("explain", total, total)

    def _score(self) -> None:
        path = self.out / OPTIONAL["scores"]
        if not self.config.score_images or path.exists():
            return
        table = read_table(self.out / TABLES["predictions"])
        chosen = sampled(np.flatnonzero(~table["correct"].to_numpy()), self.config.score_images)
        layers, methods = self.description["layers"], self.description["config"]["methods"]
        scorer = Scorer(
            self.model, self.spec.preprocess, layers, methods, table, self.out / TABLES["maps"], chosen,
            self.config.batch_size,
        )  # fmt: skip

        def rows(positions: range) -> Iterator[pa.Table]:
            done = positions.start
            for indices in self._batches(chosen, positions):
                yield scorer.rows(indices, self._ids(indices), self.source.read(indices))
                done += len(indices)
                self.progress("score", done, len(chosen))

        parts = write_missing(self._parts, "scores", len(chosen), SCORES_PER_PART, rows)
        assemble(path, parts, SCORES)
        self.progress("score", len(chosen), len(chosen))

    def _batches(self, chosen: IndexArray, positions: range) -> Iterator[IndexArray]:
        for start in range(positions.start, positions.stop, self.config.batch_size):
            yield chosen[start : min(start + self.config.batch_size, positions.stop)]

    def _measure(self) -> None:
        predictions, maps = (read_table(self.out / TABLES[name]) for name in ("predictions", "maps"))
        scored = self.out / OPTIONAL["scores"]
        scores = read_table(scored) if scored.exists() else None
        write_json(self.out / METRICS, measure(predictions, maps, self.spec.classes, scores))
        self.progress("measure", 1, 1)

    def _ids(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> list[str]:
        ids = self.source.ids
        return [ids[int(index)] for index in indices]


def _first_of_each(predictions: pa.Table, count: int) -> IndexArray:
    """The positions of each class's first ``count`` correct predictions, in the data set's order."""
    label, correct = predictions["label"].to_numpy(), predictions["correct"].to_numpy()
    chosen = [np.flatnonzero(correct & (label == value))[:count] for value in np.unique(label)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
