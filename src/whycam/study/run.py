"""The main job: predict → neighbors of the errors → explain and score → measure → a study folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from whycam.errors import WhycamError, require_packages
from whycam.models.checkpoint import ModelSpec, check_classes
from whycam.nn_utils import unwrapped
from whycam.progress import Progress, quiet
from whycam.study import manifest as manifests
from whycam.study.config import Config
from whycam.study.default_layers import check_grids, default_layers
from whycam.study.explanation_pass import ExplanationPass
from whycam.study.features import Head, features_of, find_head
from whycam.study.folder import MANIFEST, METRICS, SHARDS, Study, claim, write_json
from whycam.study.predict import logits_of
from whycam.study.road_scores import SEED, Scorer, sampled
from whycam.study.shards import assemble, write_missing_shards
from whycam.study.similarity import FORWARD, shown_neighbors, with_features, write_neighbors
from whycam.study.summary import MEASURED, measure
from whycam.study.tables import MAPS, PREDICTIONS, SCORES, prediction_rows

PREDICTIONS_PER_SHARD = 2048  # a kill costs at most the work on so many images


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

    If the process is killed, ``out`` holds a study that is marked as incomplete, and the same call continues it. A
    finished study is returned as it is.

    Args:
        model: a network; it is left as it was. Of a compiled or ``DataParallel`` network the inner network is studied,
            since features and activations cannot be read through the wrapper.
        spec: its classes, preprocessing and digest.
        source: labeled images.
        out: a folder: new, empty, or holding this very study, finished or not.
        config: the options.
        progress: called with (stage, done, total).
        publish: called with the study when its tables are written and before it is marked as complete; it may write
            figures and a report.

    Raises:
        WhycamError: the folder holds other files or cannot be written, a layer or method is unknown, or the data do
            not fit the network.
    """
    return StudyRunner(unwrapped(model), spec, source, Path(out), config or Config(), progress, publish).run()


@dataclass(frozen=True, eq=False)
class StudyRunner:
    """One call of `run_study`: its arguments, and the stages that fill the study folder."""

    model: nn.Module
    spec: ModelSpec
    source: ImageSource
    out: Path
    config: Config
    progress: Progress
    publish: Callable[[Study], object] | None

    def run(self) -> Study:
        """Run the stages that are not done yet."""
        check_classes(self.spec, self.source)
        if not len(self.source):
            raise WhycamError(f"{self.source.name}: there is no image to study")
        description = self.description  # refuses unknown layers and methods before anything is written
        before = claim(self.out, description["key"])
        if before is not None and before["status"] == "complete":
            return Study.load(self.out)
        timings: dict[str, float] = dict(before["timings"]) if before else {}
        manifest = description | {"status": "incomplete", "timings": timings}
        stages = {
            "predict": self._predict,
            "neighbors": self._neighbors,
            "explain": self._explain,
            "measure": self._measure,
        }
        for name, stage in stages.items():
            write_json(self.out / MANIFEST, manifest | {"stage": name})
            start = time.perf_counter()
            stage()
            timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - start, 3)
        manifest |= {"files": manifests.digests(self.out), "peak_memory_mib": manifests.peak_memory_mib()}
        complete = manifest | {"status": "complete", "stage": "complete"}
        if self.publish is not None:
            write_json(self.out / MANIFEST, manifest | {"stage": "publish"})
            self.publish(Study(self.out, complete, json.loads((self.out / METRICS).read_bytes())))
        # The shards are deleted first: if the process is killed in between, the study is incomplete but has all tables.
        shutil.rmtree(self._shards)
        write_json(self.out / MANIFEST, complete)
        return Study.load(self.out)

    @property
    def _shards(self) -> Path:
        return self.out / SHARDS

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers to explain."""
        return self.config.layers if self.config.layers is not None else default_layers(self.model, self._first_input)

    @cached_property
    def _first_input(self) -> torch.Tensor:
        return self.spec.preprocess(self.source.read([0]).to(next(self.model.parameters()).device))

    @cached_property
    def _head(self) -> Head | None:
        return find_head(self.model, self._first_input)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The part of the manifest that is known before the first stage."""
        if self._head is not None:
            require_packages({"sklearn": "scikit-learn"}, "study", "finding clusters of errors")
        resolved = resolve_layers(self.model, self.layers)
        methods = resolve_methods(self.config.methods)
        # One image is explained first, so that what cannot work fails at once and not after hours.
        trial = Explainer(self.model, self.layers, methods)(self._first_input)
        check_grids(methods, trial)
        options = replace(self.config, layers=self.layers, methods=tuple(method.name for method in methods))
        config = options.to_manifest() | {"targets": ["predicted", "true"], "split": self.source.split}
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
        def rows(positions: range) -> Iterator[dict[str, pa.Table]]:
            preprocess, size = self.spec.preprocess, self.config.batch_size
            with features_of(self.model, self._head) as features:
                for batch, logits in logits_of(self.model, preprocess, self.source, positions, size):
                    indices = np.asarray(batch, dtype=np.int64)
                    table = prediction_rows(indices, self._ids(indices), self.source.labels[indices], logits)
                    yield {"forward": with_features(table, features.pop()) if features else table}
                    self.progress("predict", batch.stop, len(self.source))

        # The next stage reads the features from these shards.
        table = PREDICTIONS if self._head is None else FORWARD
        shards = write_missing_shards(self._shards, {"forward": table}, len(self.source), PREDICTIONS_PER_SHARD, rows)
        self.progress("predict", len(self.source), len(self.source))
        if not PREDICTIONS.path(self.out).exists():
            assemble(self.out, PREDICTIONS, shards["forward"])

    def _neighbors(self) -> None:
        if self._head is not None:
            write_neighbors(sorted(self._shards.glob("forward-*.parquet")), self.out, self._ids, self.progress)

    def _explain(self) -> None:
        predictions = PREDICTIONS.read(self.out)
        errors = np.flatnonzero(~predictions["correct"].to_numpy())
        config, described = self.config, self.description
        methods, size = described["config"]["methods"], config.batch_size
        scorer = Scorer(self.model, self.spec.preprocess, described["layers"], methods, predictions, size)
        ExplanationPass(
            source=self.source,
            preprocess=self.spec.preprocess,
            explainer=Explainer(self.model, self.layers, config.methods),
            scorer=scorer if config.score_images else None,
            predicted=predictions["predicted"].to_numpy(),
            errors=errors,
            scored=sampled(errors, config.score_images),
            baseline=_first_of_each_class(predictions, config.baseline),
            neighbors=shown_neighbors(self.out),
            batch_size=size,
        ).write(self.out, self._shards, self.progress)

    def _measure(self) -> None:
        predictions, maps = PREDICTIONS.read(self.out), MAPS.read(self.out, *MEASURED)
        scores = SCORES.read(self.out) if self.config.score_images else None
        write_json(self.out / METRICS, measure(predictions, maps, self.spec.classes, scores))
        self.progress("measure", 1, 1)

    def _ids(self, indices: Sequence[int] | IndexArray) -> list[str]:
        return [self.source.ids[int(index)] for index in indices]


def _first_of_each_class(predictions: pa.Table, count: int) -> IndexArray:
    """The positions of each class's first ``count`` correct predictions, in the data set's order."""
    label, correct = predictions["label"].to_numpy(), predictions["correct"].to_numpy()
    chosen = [np.flatnonzero(correct & (label == value))[:count] for value in np.unique(label)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
