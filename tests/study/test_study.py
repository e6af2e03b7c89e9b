"""The study folder on real images: complete, right, continued after a kill, and never mixed up with anything else."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import whycam
from whycam import Study, WhycamError
from whycam.data import ArraySource, take
from whycam.metrics import road
from whycam.seeds import derive_seed
from whycam.study import Config, run_study
from whycam.study.scores import Scorer, sampled, summarise_scores
from whycam.study.tables import MAPS

N = 120
SCORED = 3
CONFIG = Config(methods=("gradcam", "hirescam"), limit=N, baseline=0, score_images=SCORED)


@pytest.fixture(scope="module")
def source():
    bundled = whycam.open_source("bundled")
    return take(bundled, N)


@pytest.fixture(scope="module")
def study(loaded, source, tmp_path_factory):
    return run_study(*loaded, source, tmp_path_factory.mktemp("out") / "study", CONFIG)


def test_folder_holds_what_the_design_says(study):
    assert sorted(path.name for path in study.path.iterdir()) == [
        "images.parquet",
        "manifest.json",
        "maps.parquet",
        "metrics.json",
        "neighbours.parquet",
        "predictions.parquet",
        "scores.parquet",
    ]
    manifest = study.manifest
    assert (manifest["format"], manifest["status"], manifest["stage"]) == (1, "complete", "complete")
    assert manifest["config"] == {
        "layers": ["layer2[-2]", "layer3[-2]", "layer4[-1]"],
        "methods": ["gradcam", "hirescam"],
        "targets": ["predicted", "true"],
        "limit": N,
        "split": "test",
        "batch_size": 64,
        "baseline": 0,
        "score_images": SCORED,
    }
    assert [(layer["path"], layer["channels"], layer["height"], layer["width"]) for layer in manifest["layers"]] == [
        ("layer2.0", 128, 16, 16),
        ("layer3.0", 256, 8, 8),
        ("layer4.1", 512, 4, 4),
    ]
    assert "Total params: 11,173,962" in manifest["model"]["summary"]
    for name, entry in manifest["files"].items():
        content = (study.path / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])


def test_predictions_are_the_networks(study, loaded, source):
    model, spec = loaded
    with torch.no_grad():
        logits = model(spec.preprocess(source.read(range(N)))).double()
    rows = study.predictions.to_pydict()
    assert rows["id"] == list(source.ids)
    assert rows["index"] == list(range(N))
    assert rows["label"] == source.labels.tolist()
    assert rows["predicted"] == logits.argmax(1).tolist()
    np.testing.assert_allclose(np.array(rows["logits"]), logits.numpy(), rtol=1e-4, atol=1e-4)
    probabilities = logits.softmax(1).numpy()
    np.testing.assert_allclose(np.array(rows["probabilities"]), probabilities, atol=1e-5)
    truth = probabilities[np.arange(N), source.labels]
    np.testing.assert_allclose(rows["margin"], probabilities.max(1) - truth, atol=1e-5)
    np.testing.assert_allclose(rows["loss"], -np.log(truth), atol=1e-4)


def test_every_error_has_every_map(study, loaded, source):
    model, spec = loaded
    wrong = study.errors["index"].to_pylist()
    assert wrong == [i for i, right in enumerate(study.predictions["correct"].to_pylist()) if not right]
    assert len(wrong) > 5
    rows = study.maps.to_pylist()
    expected = [
        (index, method, layer, target)
        for index in wrong
        for method in ("gradcam", "hirescam")
        for layer in ("layer2[-2]", "layer3[-2]", "layer4[-1]")
        for target in ("predicted", "true")
    ]
    found = [(row["index"], row["method"], row["layer"], row["target"]) for row in rows]
    assert sorted(found) == sorted(expected)
    assert len(set(found)) == len(found)
    for row in rows[:: max(1, len(rows) // 40)]:
        image = spec.preprocess(source.read([row["index"]]))
        explained = whycam.explain(model, image, row["layer"], row["method"], row["class_index"])
        raw = explained.map()[0].numpy()
        # Half precision keeps eleven bits of the largest value's scale.
        np.testing.assert_allclose(study.raw_map(row), raw, atol=np.abs(raw).max() * 2**-10)
        assert row["raw_max"] == pytest.approx(raw.max(), rel=1e-3, abs=1e-6)
        assert row["negative_sum"] == pytest.approx(raw.clip(max=0).sum(), rel=1e-3, abs=1e-5)
        assert row["score"] == pytest.approx(float(explained.scores["target"][0]), rel=1e-4)
        key = "predicted" if row["target"] == "predicted" else "label"
        assert row["class_index"] == study.predictions[key][row["index"]].as_py()


def test_images_are_the_pixels(study, source):
    """Of the errors, and then of every neighbour that is shown with one."""
    rows = study.neighbours.to_pylist()
    near = sorted({row["neighbour_index"] for row in rows if row["kind"] != "any"})
    assert list(study.images) == [source.ids[i] for i in [*study.errors["index"].to_pylist(), *near]]
    for name, png in study.images.items():
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert np.array_equal(pixels, source.read([source.ids.index(name)])[0].permute(1, 2, 0).numpy())


def test_neighbours_are_the_nearest_by_the_networks_features(study, loaded, source):
    """Found again from the features of one forward in single precision, a pair at a time."""
    model, spec = loaded
    kept = []
    handle = model.linear.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        model(spec.preprocess(source.read(range(N))))
    handle.remove()
    features = kept[0].double()
    cosine = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2).numpy()
    right = np.array(study.predictions["correct"].to_pylist())
    assert study.manifest["features"] == {"layer": "linear", "length": 512}
    assert study.why_no_neighbours is None
    rows = study.neighbours.to_pylist()
    for error in study.errors.to_pylist():
        for kind, count, wanted in (("true", 3, "label"), ("predicted", 3, "predicted"), ("any", 10, None)):
            found = [row for row in rows if (row["index"], row["kind"]) == (error["index"], kind)]
            allowed = np.arange(N) != error["index"]
            if wanted:
                allowed = right & (source.labels == error[wanted])
            best = np.sort(cosine[error["index"]][allowed])[::-1][:count]
            assert [row["rank"] for row in found] == list(range(1, len(best) + 1))
            # Features are kept in half precision, so what is nearly as near may change places.
            np.testing.assert_allclose([row["similarity"] for row in found], best, atol=1e-3)
            for row in found:
                assert allowed[row["neighbour_index"]]
                assert row["neighbour_id"] == source.ids[row["neighbour_index"]]
                assert row["similarity"] == pytest.approx(cosine[error["index"], row["neighbour_index"]], abs=1e-3)


def test_studies_without_neighbours_say_why(study, loaded, source, tmp_path):
    older = {name: value for name, value in study.manifest.items() if name != "features"}
    older["files"] = {name: entry for name, entry in older["files"].items() if name != "neighbours.parquet"}
    before = Study(study.path, older, study.metrics)
    assert before.neighbours is before.clusters is None
    assert "made before whycam recorded neighbours" in before.why_no_neighbours
    assert before.suspects["votes"].to_pylist() == [0] * len(study.errors)

    class Cooler(torch.nn.Module):
        """The same network, its logits divided by a temperature: no layer's output is the network's."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) / 1.5

    model, spec = loaded
    headless = run_study(
        Cooler(model), spec, take(source, 20), tmp_path / "s", Config(layers=("inner.layer4",), baseline=0)
    )
    assert headless.manifest["features"] is None
    assert headless.neighbours is None
    assert "not that of one linear layer" in headless.why_no_neighbours
    assert not (headless.path / "neighbours.parquet").exists()
    assert list(headless.images) == headless.errors["id"].to_pylist()


def test_metrics_agree_with_the_tables(study):
    metrics = study.metrics
    label, predicted = (study.predictions[name].to_numpy() for name in ("label", "predicted"))
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (label, predicted), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert (metrics["n"], metrics["correct"]) == (N, int((label == predicted).sum()))
    assert metrics["cross_entropy"] == pytest.approx(np.mean(study.predictions["loss"].to_numpy()), rel=1e-4)
    low, high = metrics["accuracy_interval"]
    assert low < metrics["accuracy"] < high
    assert sum(row["n"] for row in metrics["reliability"]) == N
    assert len(metrics["maps"]) == 12
    last = next(m for m in metrics["maps"] if (m["layer"], m["target"]) == ("layer4[-1]", "predicted"))
    assert last["n"] == len(study.errors)
    assert last["negative_median"] <= 0 <= last["positive_median"]


def same_scores(one, other):
    columns = ["id", "layer", "method", "target", "class_index"]
    assert one.scores.select(columns).equals(other.scores.select(columns))
    for name in ("before", "morf", "lerf", "combined"):
        # Maps kept in half precision may round apart where they were computed in other batches, and pixels change rank.
        np.testing.assert_allclose(one.scores[name].to_numpy(), other.scores[name].to_numpy(), atol=0.005)


def test_scores_are_road_of_the_stored_maps_beside_the_controls(study, loaded, source):
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
    centre = [row["combined"] for row in rows if row["method"] == "center"]
    noise = [row["combined"] for row in rows if row["method"] == "noise"]
    assert len(set(centre)) == len(set(noise)) == SCORED


def combination_of(row):
    return row["layer"], row["method"]


def test_summaries_of_scores_are_the_tables(study):
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


def test_maps_without_an_order_are_counted_and_not_scored(study, loaded, source, tmp_path):
    model, spec = loaded
    chosen = study.errors["index"].to_numpy()[:2].astype(np.int64)
    maps = study.maps.to_pylist()
    for row in maps:
        if (row["index"], row["layer"], row["method"]) == (chosen[1], "layer4[-1]", "gradcam"):
            row["values"][5] = np.nan
    pq.write_table(pa.Table.from_pylist(maps, schema=MAPS), tmp_path / "maps.parquet")
    layers = [layer for layer in study.manifest["layers"] if layer["name"] == "layer4[-1]"]
    scorer = Scorer(
        model, spec.preprocess, layers, ["gradcam"], study.predictions, tmp_path / "maps.parquet", chosen, 64
    )
    table = scorer.rows(chosen, [source.ids[i] for i in chosen], source.read(chosen))
    assert [row["morf"] is None for row in table.to_pylist()] == [False] * 3 + [True] + [False] * 2
    entries = summarise_scores(table)
    assert [(entry["n"], entry["unranked"]) for entry in entries] == [(1, 1), (2, 0), (2, 0)]
    assert (entries[0]["interval"], entries[0]["verdict"]) == (None, "unclear")


def test_studies_without_scores_say_why(study, loaded, source, tmp_path):
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


def test_the_sample_of_errors_is_drawn_once_and_for_all():
    errors = np.arange(0, 4000, 7, dtype=np.int64)
    some, again, more = sampled(errors, 40), sampled(errors, 40), sampled(errors, 1000)
    assert np.array_equal(some, again)
    assert len(set(some.tolist())) == 40
    assert set(some.tolist()) <= set(errors.tolist())
    assert np.array_equal(some, np.sort(some))
    assert some.max() > 3000  # not the first ones
    assert np.array_equal(more, errors)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_batch_size_and_wrappers_do_not_matter(study, loaded, source, tmp_path):
    network, spec = loaded
    wrapped = torch.compile(torch.nn.DataParallel(network))
    other = run_study(wrapped, spec, source, tmp_path / "study", dataclasses.replace(CONFIG, batch_size=7))
    assert other.manifest["key"] == study.manifest["key"]
    assert other.manifest["features"] == study.manifest["features"] == {"layer": "linear", "length": 512}
    assert len(other.neighbours) == len(study.neighbours) > 0
    assert other.predictions["predicted"].equals(study.predictions["predicted"])
    assert other.maps.select(["id", "method", "layer", "target"]).equals(
        study.maps.select(["id", "method", "layer", "target"])
    )
    np.testing.assert_allclose(other.maps["raw_max"].to_numpy(), study.maps["raw_max"].to_numpy(), rtol=1e-3, atol=1e-5)
    same_scores(other, study)


def test_finished_study_is_returned_as_it_is(study, loaded, source):
    before = {path.name: path.stat().st_mtime_ns for path in study.path.iterdir()}
    again = run_study(*loaded, source, study.path, CONFIG)
    assert {path.name: path.stat().st_mtime_ns for path in study.path.iterdir()} == before
    assert again.metrics == study.metrics


def test_another_study_is_never_mixed_in(study, loaded, source):
    for config, data in [
        (dataclasses.replace(CONFIG, methods=("gradcam",)), source),
        (dataclasses.replace(CONFIG, layers=("layer4[-1]",)), source),
        (dataclasses.replace(CONFIG, score_images=0), source),
        (CONFIG, take(source, N - 1)),
    ]:
        with pytest.raises(WhycamError, match=r"holds another study .*give another folder"):
            run_study(*loaded, data, study.path, config)


def test_folder_that_holds_something_else(loaded, source, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WhycamError, match=r"holds something else \(thesis.tex\); give a new or empty folder"):
        run_study(*loaded, source, tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(WhycamError, match="is a file; give a folder"):
        run_study(*loaded, source, tmp_path / "thesis.tex", CONFIG)
    with pytest.raises(WhycamError, match="part of the path is a file, not a folder"):
        run_study(*loaded, source, tmp_path / "thesis.tex" / "study", CONFIG)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(WhycamError, match="not a study manifest"):
        run_study(*loaded, source, tmp_path, CONFIG)


def test_nothing_is_written_for_unknown_names(loaded, source, tmp_path):
    for config in (Config(layers=("layer9",)), Config(methods=("gradcram",))):
        with pytest.raises(WhycamError, match="unknown"):
            run_study(*loaded, source, tmp_path / "study", config)
    assert not (tmp_path / "study").exists()


def test_no_errors_and_one_error(loaded, source, tmp_path, study):
    wrong = study.errors["index"].to_pylist()
    right = [index for index in range(N) if index not in wrong][:5]
    for name, chosen in [("none", right), ("one", [*right, wrong[0]])]:
        part = ArraySource(
            source.read(chosen).numpy(),
            source.labels[chosen],
            source.classes,
            tuple(source.ids[i] for i in chosen),
            "some",
            "test",
        )
        done = run_study(*loaded, part, tmp_path / name, CONFIG)
        assert len(done.errors) == len(chosen) - len(right)
        assert len(done.maps) == 12 * len(done.errors)
        assert len(done.scores) == 8 * len(done.errors)
        assert [(e["n"], e["interval"], e["verdict"] in (None, "unclear")) for e in done.metrics["map_scores"]] == (
            8 * [(1, None, True)] if len(done.errors) else []
        )
        assert Study.load(done.path).metrics["errors"] == len(done.errors)


def test_classes_that_do_not_belong_together(loaded, source, tmp_path):
    def with_classes(classes):
        return ArraySource(source.read([0]).numpy(), source.labels[:1] * 0, classes, ("a",), "pets", "test")

    with pytest.raises(WhycamError, match="the network has 10 classes, pets has 2"):
        run_study(*loaded, with_classes(("cat", "dog")), tmp_path / "a", CONFIG)
    with pytest.raises(WhycamError, match=r"class 0 is 'airplane' for the network and 'truck' in pets.*another order"):
        run_study(*loaded, with_classes(tuple(reversed(source.classes))), tmp_path / "b", CONFIG)


SCRIPT = """
import sys, whycam
from whycam.data import take
from whycam.study import Config, run, run_study
run.PREDICTIONS_PER_PART, run.EXPLANATIONS_PER_PART, run.SCORES_PER_PART = 16, 4, 1
def told(stage, done, total):
    print(stage, done, total, flush=True)
source = take(whycam.open_source("bundled"), 120)
config = Config(methods=("gradcam", "hirescam"), limit=120, batch_size=8, baseline=0, score_images=3)
run_study(*whycam.load("cifar10-resnet18"), source, sys.argv[1], config, progress=told)
"""


def test_killed_at_any_moment_it_says_so_and_continues(study, tmp_path):
    """SIGKILL again and again until it gets through: what is left is always either whole or says it is not."""
    out, kills, repeated = tmp_path / "study", 0, []
    rng = random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True, env=environment
        )
        # Let it tell of some progress first, then strike a little later.
        lines = rng.randrange(1, 5)
        for count, line in enumerate(process.stdout, start=1):
            repeated.append(line)
            if count == lines and kills < 8:
                time.sleep(rng.random() * 0.02)
                process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        kills += 1
        assert process.returncode == -signal.SIGKILL
        manifest = json.loads((out / "manifest.json").read_text())
        if manifest["status"] != "complete":
            with pytest.raises(
                WhycamError, match=r"this study is incomplete .*run the same whycam study command again"
            ):
                Study.load(out)
        for name in ("predictions", "maps", "images"):
            if (out / f"{name}.parquet").exists():
                pq.read_table(out / f"{name}.parquet")  # whole
    assert kills >= 4
    done = Study.load(out)
    columns = ["id", "method", "layer", "target", "class_index"]
    assert done.maps.select(columns).equals(study.maps.select(columns))
    assert done.predictions["predicted"].equals(study.predictions["predicted"])
    columns = ["id", "kind", "rank"]
    assert done.neighbours.select(columns).equals(study.neighbours.select(columns))
    similar = [table["similarity"].to_numpy() for table in (done.neighbours, study.neighbours)]
    np.testing.assert_allclose(*similar, atol=1e-3)
    same_scores(done, study)
    assert done.manifest["files"].keys() == study.manifest["files"].keys()
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
    assert not (out / "parts").exists()
    # Finished parts were kept: the work told of is less than that of as many runs from the start.
    assert sum(line.startswith("predict") for line in repeated) < (kills + 1) * 16


def test_right_predictions_stand_beside_the_errors(loaded, source, tmp_path, study):
    """The first two of each class, for their class alone; what is said of the errors stays as it is without them."""
    config = Config(methods=("gradcam", "hirescam"), limit=N, baseline=2, score_images=0)
    done = run_study(*loaded, take(source, N), tmp_path / "study", config)
    assert done.metrics["maps"] == study.metrics["maps"]
    wrong = set(done.errors["index"].to_pylist())
    rows = [row for row in done.maps.to_pylist() if row["index"] not in wrong]
    assert {row["target"] for row in rows} == {"predicted"}
    expected = []
    for label in range(10):
        of_class = [i for i in range(N) if source.labels[i] == label and i not in wrong]
        expected += of_class[:2]
    assert sorted({row["index"] for row in rows}) == sorted(expected)
    assert all(row["class_index"] == source.labels[row["index"]] for row in rows)
    assert len(rows) == 2 * 3 * len(expected)
    assert list(done.images)[: len(wrong)] == done.errors["id"].to_pylist()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("gradcam", "sobel"), "Sobel gives no map of its own for each layer"),
        (("refinecam",), "Refine-CAM gives no map of its own for each layer"),
        (("gradcam", "guidedgradcam"), r"Guided Grad-CAM at layer2\[-2\] is not on the grid of Grad-CAM"),
    ],
)
def test_methods_that_cannot_stand_side_by_side_are_refused(loaded, source, tmp_path, methods, message):
    with pytest.raises(WhycamError, match=message):
        run_study(*loaded, take(source, 5), tmp_path / "study", Config(methods=methods))
    assert not (tmp_path / "study").exists()


def test_a_study_is_not_complete_before_it_is_published(loaded, source, tmp_path):
    """Whatever stops the drawing of what people look at: the study says it is incomplete, and goes on."""
    out, drawn = tmp_path / "study", []

    def fail(done):
        drawn.append(len(done.errors))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(*loaded, take(source, 20), out, Config(), publish=fail)
    with pytest.raises(WhycamError, match=r"this study is incomplete \(stopped at: publish\)"):
        Study.load(out)
    done = run_study(*loaded, take(source, 20), out, Config(), publish=lambda done: drawn.append(len(done.errors)))
    assert drawn == [len(done.errors)] * 2
    assert Study.load(out).manifest["status"] == "complete"


def test_progress_tells_of_every_stage(loaded, source, tmp_path):
    told = []
    run_study(
        *loaded, take(source, 20), tmp_path / "study", Config(batch_size=8), progress=lambda *step: told.append(step)
    )
    assert [step for step in told if step[0] == "predict"][:3] == [
        ("predict", 8, 20),
        ("predict", 16, 20),
        ("predict", 20, 20),
    ]
    assert told[-1] == ("measure", 1, 1)


def test_network_that_answers_nan(loaded, source, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    torch.nn.init.constant_(model[1].weight, torch.nan)
    _, spec = loaded
    config = Config(layers=("layer4[-1]",))
    with pytest.raises(WhycamError):
        run_study(model, spec, source, tmp_path / "study", config)
    from whycam.study import evaluate

    with pytest.raises(WhycamError, match=r"the network's output for test/\d{5} is NaN or infinite"):
        evaluate(model, spec, source)
