"""The study folder: what every tool hands on, and how it is read back."""

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

from whycam.errors import WhycamError
from whycam.files import write_bytes, writing
from whycam.study.label_issues import label_issues
from whycam.study.shards import read_table

FORMAT = 1
MANIFEST = "manifest.json"
METRICS = "metrics.json"
TABLES = {"predictions": "predictions.parquet", "images": "images.parquet", "maps": "maps.parquet"}
RELATIONS = {"neighbors": "neighbours.parquet", "clusters": "clusters.parquet"}
"""Tables that a study has only if the network's head was recognized."""
OPTIONAL = {**RELATIONS, "scores": "scores.parquet"}
"""Tables that not every study has."""
PARTS = "parts"
FIGURES = "figures"
REPORT = "report.html"


@dataclass(frozen=True, eq=False)
class Study:
    """A finished study, read from its folder; tables are read on first use.

    Attributes:
        path: the folder.
        manifest: what was run, on what, with what.
        metrics: the classifier's scores and a summary of the maps.
    """

    path: Path
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study folder.

        Raises:
            WhycamError: there is none, it is incomplete, or a file of it is missing or damaged.
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
        return read_table(self.path / TABLES["predictions"])

    @cached_property
    def errors(self) -> pa.Table:
        """The rows of `predictions` that are wrong."""
        return self.predictions.filter(pc.invert(self.predictions["correct"]))

    @cached_property
    def maps(self) -> pa.Table:
        """One row per explained image, method, layer and target."""
        return read_table(self.path / TABLES["maps"])

    @cached_property
    def neighbors(self) -> pa.Table | None:
        """The nearest images of every error by the network's features, or None: ``why_no_neighbors`` says why."""
        return self._optional("neighbors")

    @cached_property
    def clusters(self) -> pa.Table | None:
        """One row per error with its cluster by the network's features, or None where there are none."""
        return self._optional("clusters")

    @cached_property
    def suspects(self) -> pa.Table:
        """One row per error: how much speaks against its *label*, the most suspicious first."""
        return label_issues(self.predictions, self.neighbors)

    @property
    def why_no_neighbors(self) -> str | None:
        """Why `neighbors` is None, as a sentence; None where it is not."""
        if self.neighbors is not None:
            return None
        if "features" not in self.manifest:
            return "This study was made before whycam recorded neighbors; a new study into another folder has them."
        return "The network’s output is not that of one linear layer, so there are no features to compare images by."

    @cached_property
    def scores(self) -> pa.Table | None:
        """ROAD of every map of a sample of the errors, one row per image, layer and method, controls among them.

        None where there are none: ``why_no_scores`` says why. `metrics` holds their means and intervals.
        """
        return self._optional("scores")

    @property
    def why_no_scores(self) -> str | None:
        """Why `scores` is None, as a sentence; None where it is not."""
        if self.scores is not None:
            return None
        if "score_images" not in self.manifest["config"]:
            return "This study was made before whycam scored its maps; a new study into another folder has scores."
        return "No map was scored, as this study was asked to (--score-images 0); a new study into another folder can."

    @cached_property
    def images(self) -> Mapping[str, bytes]:
        """Id → PNG of the pixels that the network saw, for every error and for the neighbors that are shown with it.

        Neighbors larger than 96 pixels are reduced to that.
        """
        table = read_table(self.path / TABLES["images"])
        return dict(zip(table["id"].to_pylist(), table["png"].to_pylist(), strict=True))

    def _optional(self, name: str) -> pa.Table | None:
        path = self.path / OPTIONAL[name]
        # What the manifest lists has to be there; a file it does not list is not this study's.
        return read_table(path) if path.name in self.manifest.get("files", {}) else None

    def __repr__(self) -> str:
        errors, n, accuracy = (self.metrics[name] for name in ("errors", "n", "accuracy"))
        return f"Study({str(self.path)!r}: {errors:,} errors of {n:,} images, accuracy {accuracy:.2%})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from whycam.study.notebook import study_html

        return study_html(self)

    @staticmethod
    def raw_map(row: Mapping[str, Any]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The signed raw map (h, w) of a row of `maps`."""
        values = np.asarray(row["values"], dtype=np.float32).reshape(row["height"], row["width"])
        return values * np.float32(row["scale"]) if row["scale"] > 0 else values


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a study folder, or None where there is none.

    Raises:
        WhycamError: there is one, but it cannot be read or is of another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT or not {"status", "stage", "key"} <= manifest.keys():
        raise WhycamError(f"{path}: not a study manifest that this whycam reads; choose another folder")
    return manifest


def claim(folder: Path, key: str) -> dict[str, Any] | None:
    """Make the folder that of the study with this key: the manifest of its begun run, or None for a fresh start.

    Raises:
        WhycamError: it holds something else, another study, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise WhycamError(f"{folder}: is a file; give a folder")
    before = read_manifest(folder)
    if before is None and folder.is_dir() and (found := _visible(folder)):
        raise WhycamError(f"{folder}: holds something else ({found}); give a new or empty folder")
    if before is not None and before["key"] != key:
        raise WhycamError(
            f"{folder}: holds another study (other weights, data, layers, methods, options or version of "
            "whycam); give another folder"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A finished study has no use for parts, and its folder may by now be read-only.
        if before is None or before["status"] != "complete":
            (folder / PARTS).mkdir(exist_ok=True)
            for leftover in folder.rglob(".*.partial"):
                leftover.unlink()
    return before


def _visible(folder: Path) -> str | None:
    """The name of something in the folder that is not our own leftover of a killed start."""
    return next((p.name for p in sorted(folder.iterdir()) if p.name != PARTS and not p.name.endswith(".partial")), None)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all; NaN, which JSON lacks, is refused."""
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WhycamError(f"{path}: cannot be read; delete the study and make it again") from error
    if not isinstance(values, dict):
        raise WhycamError(f"{path}: not what a study holds; delete the study and make it again")
    return values
