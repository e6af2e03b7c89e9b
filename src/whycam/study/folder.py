"""The study folder: all other tools read it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whycam._lazy import renamed_attribute
from whycam.errors import WhycamError
from whycam.files import write_bytes, writing
from whycam.study.label_issues import label_issues
from whycam.study.notebook import study_html
from whycam.study.tables import CLUSTERS, IMAGES, MAPS, NEIGHBORS, PREDICTIONS, SCHEMA_VERSION, SCORES, Table

MANIFEST = "manifest.json"
METRICS = "metrics.json"
SHARDS = "parts"
FIGURES = "figures"
REPORT = "report.html"


@dataclass(frozen=True, eq=False)
class Study:
    """A finished study, read from its folder. Each table is read on first use and kept.

    Attributes:
        path: the folder.
        manifest: model, data, options and environment of the run.
        metrics: the classifier's scores and a summary of the maps.
    """

    path: Path
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study folder.

        Raises:
            WhycamError: the folder is missing or incomplete, or one of its files is missing or damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise WhycamError(f"{path}: no study here ({MANIFEST} is missing); whycam study makes one")
        if manifest["status"] != "complete":
            raise WhycamError(
                f"{path}: this study is incomplete (stopped at: {manifest['stage']}); run the same whycam study "
                "command again to continue it"
            )
        return cls(path, manifest, _read_json(path / METRICS))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.manifest["model"]["classes"])

    @cached_property
    def predictions(self) -> pa.Table:
        """One row per image, in the data set's order."""
        return PREDICTIONS.read(self.path)

    @cached_property
    def errors(self) -> pa.Table:
        """The rows of `predictions` that are wrong."""
        return self.predictions.filter(pc.invert(self.predictions["correct"]))

    @cached_property
    def maps(self) -> pa.Table:
        """One row per explained image, method, layer and target."""
        return MAPS.read(self.path)

    @cached_property
    def neighbors(self) -> pa.Table | None:
        """The nearest images of every error by the network's features, or None; then ``why_no_neighbors`` says why."""
        return self._optional(NEIGHBORS)

    @cached_property
    def clusters(self) -> pa.Table | None:
        """One row per error with its cluster by the network's features, or None if there are no clusters."""
        return self._optional(CLUSTERS)

    @cached_property
    def label_issues(self) -> pa.Table:
        """One row per error with the evidence against its label, the most suspicious label first."""
        return label_issues(self.predictions, self.neighbors)

    neighbours = renamed_attribute("neighbours", "neighbors")
    suspects = renamed_attribute("suspects", "label_issues")
    why_no_neighbours = renamed_attribute("why_no_neighbours", "why_no_neighbors")

    @property
    def why_no_neighbors(self) -> str | None:
        """A sentence that says why `neighbors` is None, or None if there are neighbors."""
        if self.neighbors is not None:
            return None
        if "features" not in self.manifest:
            return "This study was made before whycam recorded neighbors; a new study into another folder has them."
        return "The network’s output is not that of one linear layer, so there are no features to compare images by."

    @cached_property
    def scores(self) -> pa.Table | None:
        """ROAD of all maps of a sample of the errors and of two controls, one row per image, layer and method.

        None if no map was scored; then ``why_no_scores`` says why. `metrics` holds means and intervals.
        """
        return self._optional(SCORES)

    @property
    def why_no_scores(self) -> str | None:
        """A sentence that says why `scores` is None, or None if there are scores."""
        if self.scores is not None:
            return None
        if "score_images" not in self.manifest["config"]:
            return "This study was made before whycam scored its maps; a new study into another folder has scores."
        return "No map was scored, as this study was asked to (--score-images 0); a new study into another folder can."

    @cached_property
    def images(self) -> Mapping[str, bytes]:
        """Id → PNG of the pixels that the network saw, for every error and for its shown neighbors.

        Neighbors larger than 96 pixels are reduced to 96.
        """
        table = IMAGES.read(self.path, "id", "png")
        return dict(zip(table["id"].to_pylist(), table["png"].to_pylist(), strict=True))

    def _optional(self, table: Table) -> pa.Table | None:
        # A file that the manifest lists must exist; one that it does not list does not belong to this study.
        return table.read(self.path) if table.file in self.manifest.get("files", {}) else None

    def __repr__(self) -> str:
        errors, n, accuracy = (self.metrics[name] for name in ("errors", "n", "accuracy"))
        return f"Study({str(self.path)!r}: {errors:,} errors of {n:,} images, accuracy {accuracy:.2%})"

    def _repr_html_(self) -> str:
        """The report, for a notebook."""
        return study_html(self.path / REPORT, self.metrics)

    @staticmethod
    def raw_map(row: Mapping[str, Any]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The signed raw map (h, w) of a row of `maps`."""
        values = np.asarray(row["values"], dtype=np.float32).reshape(row["height"], row["width"])
        return values * np.float32(row["scale"]) if row["scale"] > 0 else values


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a study folder, or None if the folder has none.

    Raises:
        WhycamError: the manifest cannot be read or has another schema version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = _read_json(path)
    if manifest.get("format") != SCHEMA_VERSION or not {"status", "stage", "key"} <= manifest.keys():
        raise WhycamError(f"{path}: not a study manifest that this whycam reads; choose another folder")
    return manifest


def claim(folder: Path, key: str) -> dict[str, Any] | None:
    """Reserve the folder for the study with this key.

    Returns:
        The manifest of the run that was begun there, or None for a fresh start.

    Raises:
        WhycamError: the folder holds another study or other files, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise WhycamError(f"{folder}: is a file; give a folder")
    before = read_manifest(folder)
    if before is None and folder.is_dir() and (found := _foreign_file(folder)):
        raise WhycamError(f"{folder}: holds something else ({found}); give a new or empty folder")
    if before is not None and before["key"] != key:
        raise WhycamError(
            f"{folder}: holds another study (other weights, data, layers, methods, options or version of "
            "whycam); give another folder"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A finished study needs no shards, and its folder may be read-only by now.
        if before is None or before["status"] != "complete":
            (folder / SHARDS).mkdir(exist_ok=True)
            for leftover in folder.rglob(".*.partial"):
                leftover.unlink()
    return before


def _foreign_file(folder: Path) -> str | None:
    """The name of a file that a killed start of a study cannot have left."""
    names = (path.name for path in sorted(folder.iterdir()))
    return next((name for name in names if name != SHARDS and not name.endswith(".partial")), None)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; NaN, which JSON lacks, is refused."""
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WhycamError(f"{path}: cannot be read; delete the study and make it again") from error
    if not isinstance(values, dict):
        raise WhycamError(f"{path}: not what a study holds; delete the study and make it again")
    return values
