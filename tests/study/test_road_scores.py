"""A study's scores: ROAD of the stored maps of some errors and of two controls, and their summary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from real_study import SCORED

from whycam import Study, WhycamError
from whycam.data import take
from whycam.metrics import road
from whycam.seeds import derive_seed
from whycam.study import Config, run_study
from whycam.study.road_scores import Scorer, sampled, summarize_scores


def test_scores_are_road_of_stored_maps_and_controls(study, loaded, source):
    model, spec = loaded
    rows = study.scores.to_pylist()
    layers = ("layer2[-2]", "layer3[-2]", "layer4[-1]")
    combinations = [(layer, method) for method in ("gradcam", "hirescam") for layer in layers]
    combinations += [("input", "noise"), ("input", "center")]
    images = list(dict.fromkeys(row["index"] for row in rows))
    assert len(images) == SCORED < len(study.errors)
    assert set(images) <= set(study.errors["index"].to_pylist())
    assert images == sorted(images)
    assert [(row["index"], row["layer"], row["method"]) for row in rows] == [
        (index, *combination) for index in images for combination in combinations
    ]
    maps = {(m["index"], m["layer"], m["method"]): m for m in study.maps.to_pylist() if m["target"] == "predicted"}
    predictions = study.predictions.to_pylist()
    for row in rows:
        index, predicted = row["index"], predictions[row["index"]]
        assert (row["id"], row["class_index"]) == (source.ids[index], predicted["predicted"])
        assert (row["target"], row["before"]) == ("predicted", predicted["confidence"])
        assert row["combined"] == pytest.approx((row["lerf"] - row["morf"]) / 2, abs=1e-6)
        if row["layer"] == "input" or index != images[-1]:
            continue
        raw = torch.from_numpy(study.raw_map(maps[index, *combination_of(row)]))
        scores = road(
            model, source.read([index]).float() / 255, raw[None], row["class_index"], preprocess=spec.preprocess,
            seed=[derive_seed("scores", 0, index)],
        )  # fmt: skip
        assert row["morf"] == pytest.approx(float(scores.morf.mean()), abs=1e-4)
        assert row["lerf"] == pytest.approx(float(scores.lerf.mean()), abs=1e-4)
    center = [row["combined"] for row in rows if row["method"] == "center"]
    noise = [row["combined"] for row in rows if row["method"] == "noise"]
    assert len(set(center)) == len(set(noise)) == SCORED


def combination_of(row):
    return row["layer"], row["method"]


def test_summaries_agree_with_the_table_of_scores(study):
    entries = study.metrics["map_scores"]
    assert len(entries) == 8
    rows = study.scores.to_pylist()
    for entry in entries:
        mine = [row for row in rows if combination_of(row) == combination_of(entry)]
        assert (entry["n"], entry["unranked"]) == (SCORED, 0)
        for name in ("combined", "morf", "lerf", "before"):
            assert entry[name] == pytest.approx(np.mean([row[name] for row in mine]), abs=1e-6)
        low, high = entry["interval"]
        combined = [row["combined"] for row in mine]
        assert min(combined) <= low <= entry["combined"] <= high <= max(combined)
    noise = next(entry["interval"] for entry in entries if entry["method"] == "noise")
    for entry in entries:
        low, high = entry["interval"]
        verdict = "above" if low > noise[1] else "below" if high < noise[0] else "unclear"
        assert entry["verdict"] == (None if entry["layer"] == "input" else verdict)


def test_maps_that_are_not_finite_are_counted_and_not_scored(study, loaded, source):
    model, spec = loaded
    chosen = study.errors["index"].to_numpy()[:2].astype(np.int64)
    wanted = ("layer4[-1]", "gradcam", "predicted")
    rows = [row for row in study.maps.to_pylist() if (row["layer"], row["method"], row["target"]) == wanted]
    maps = torch.from_numpy(np.stack([study.raw_map(row) for row in rows if row["index"] in chosen]))
    maps[1, 1, 1] = np.nan
    layers = [layer for layer in study.manifest["layers"] if layer["name"] == "layer4[-1]"]
    scorer = Scorer(model, spec.preprocess, layers, ["gradcam"], study.predictions, 64)
    ids = [source.ids[i] for i in chosen]
    table = scorer.rows(chosen, ids, source.read(chosen), {("gradcam", "layer4[-1]"): maps})
    assert [row["morf"] is None for row in table.to_pylist()] == [False] * 3 + [True] + [False] * 2
    entries = summarize_scores(table)
    assert [(entry["n"], entry["unranked"]) for entry in entries] == [(1, 1), (2, 0), (2, 0)]
    assert (entries[0]["interval"], entries[0]["verdict"]) == (None, "unclear")


def test_studies_without_scores_give_the_reason(study, loaded, source, tmp_path):
    assert study.why_no_scores is None
    config = {name: value for name, value in study.manifest["config"].items() if name != "score_images"}
    files = {name: entry for name, entry in study.manifest["files"].items() if name != "scores.parquet"}
    before = Study(study.path, dict(study.manifest) | {"config": config, "files": files}, study.metrics)
    assert before.scores is None
    assert "made before whycam scored its maps" in before.why_no_scores
    with pytest.raises(WhycamError, match="maps of 0 or more errors can be scored, got -1"):
        Config(score_images=-1)
    none = run_study(*loaded, take(source, 20), tmp_path / "study", Config(baseline=0, score_images=0))
    assert none.scores is None
    assert "--score-images 0" in none.why_no_scores
    assert not (none.path / "scores.parquet").exists()
    assert "map_scores" not in none.metrics
    assert none.manifest["seed"] is None
    assert study.manifest["seed"] == 0


def test_the_sample_of_errors_is_reproducible():
    errors = np.arange(0, 4000, 7, dtype=np.int64)
    some, again, more = sampled(errors, 40), sampled(errors, 40), sampled(errors, 1000)
    assert np.array_equal(some, again)
    assert len(set(some.tolist())) == 40
    assert set(some.tolist()) <= set(errors.tolist())
    assert np.array_equal(some, np.sort(some))
    assert some.max() > 3000  # not the first ones
    assert np.array_equal(more, errors)
