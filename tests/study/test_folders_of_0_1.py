"""A study folder that release 0.1 wrote opens, is reported and is served."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from whycam import Study, WhycamError
from whycam.app.pages import report_page
from whycam.files import sha256_of
from whycam.report.publish import publish
from whycam.study.tables import IMAGES, MAPS, NEIGHBORS, PREDICTIONS, SCORES

# Twelve bundled images, five of them errors, written by whycam 0.1.0.
FOLDER = Path(__file__).parent / "data" / "study-0.1"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "study")


def test_it_opens_with_every_row_and_column(folder):
    study = Study.load(folder)
    assert study.manifest["whycam"] == "0.1.0"
    for name, entry in study.manifest["files"].items():
        assert sha256_of(folder / name) == entry["sha256"]
    for table, rows in (
        (PREDICTIONS, study.predictions), (MAPS, study.maps), (NEIGHBORS, study.neighbors), (SCORES, study.scores),
        (IMAGES, IMAGES.read(folder)),
    ):  # fmt: skip
        stored = pq.read_table(folder / table.file)
        assert rows.equals(stored)
        assert rows.schema.equals(table.schema)
        assert len(rows) > 0
    assert study.clusters is None
    assert study.why_no_neighbors is study.why_no_scores is None
    assert len(study.errors) == len(study.label_issues) == study.metrics["errors"] == 5
    assert set(study.errors["id"].to_pylist()) <= set(study.images)
    row = study.maps.slice(0, 1).to_pylist()[0]
    assert np.abs(study.raw_map(row)).max() == pytest.approx(max(abs(row["raw_min"]), abs(row["raw_max"])), rel=1e-3)


def test_it_is_reported_and_served(folder):
    study = Study.load(folder)
    page = publish(study)
    assert "5 of 12 images misclassified" in page.read_text(encoding="utf-8")
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "confusion.png", "misclassified.png", "gradcam-layer2.0.png", "gradcam-layer3.0.png", "gradcam-layer4.1.png"
    }  # fmt: skip
    assert report_page(study, live=None).content == page.read_bytes()


def test_the_old_name_of_label_issues_still_works(folder):
    study = Study.load(folder)
    with pytest.warns(DeprecationWarning, match=r"Study\.suspects is now label_issues"):
        assert study.suspects is study.label_issues


def test_a_folder_of_another_schema_version_is_refused(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(WhycamError, match="not a study manifest that this whycam reads"):
        Study.load(folder)
