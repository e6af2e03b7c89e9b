"""A study of real images: its tables are complete and correct, and each image is read once in each pass."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from real_study import CONFIG, SCORED, N, same_scores

import whycam
from whycam import Study, WhycamError
from whycam.data import ArraySource, take
from whycam.study import Config, run_study


def test_files_and_manifest_of_a_study(study):
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


def test_predictions_equal_a_forward_pass(study, loaded, source):
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


def test_images_are_the_pixels_of_errors_and_neighbors(study, source):
    """Of the errors, and then of every neighbor that is shown with one."""
    rows = study.neighbors.to_pylist()
    near = sorted({row["neighbour_index"] for row in rows if row["kind"] != "any"})
    assert list(study.images) == [source.ids[i] for i in [*study.errors["index"].to_pylist(), *near]]
    for name, png in study.images.items():
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert np.array_equal(pixels, source.read([source.ids.index(name)])[0].permute(1, 2, 0).numpy())


def test_neighbors_are_the_nearest_by_the_networks_features(study, loaded, source):
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
    assert study.why_no_neighbors is None
    rows = study.neighbors.to_pylist()
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


def test_studies_without_neighbors_give_the_reason(study, loaded, source, tmp_path):
    older = {name: value for name, value in study.manifest.items() if name != "features"}
    older["files"] = {name: entry for name, entry in older["files"].items() if name != "neighbours.parquet"}
    before = Study(study.path, older, study.metrics)
    assert before.neighbors is before.clusters is None
    assert "made before whycam recorded neighbors" in before.why_no_neighbors
    assert before.label_issues["votes"].to_pylist() == [0] * len(study.errors)

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
    assert headless.neighbors is None
    assert "not that of one linear layer" in headless.why_no_neighbors
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_batch_size_and_wrappers_do_not_matter(study, loaded, source, tmp_path):
    network, spec = loaded
    wrapped = torch.compile(torch.nn.DataParallel(network))
    other = run_study(wrapped, spec, source, tmp_path / "study", dataclasses.replace(CONFIG, batch_size=7))
    assert other.manifest["key"] == study.manifest["key"]
    assert other.manifest["features"] == study.manifest["features"] == {"layer": "linear", "length": 512}
    assert len(other.neighbors) == len(study.neighbors) > 0
    assert other.predictions["predicted"].equals(study.predictions["predicted"])
    assert other.maps.select(["id", "method", "layer", "target"]).equals(
        study.maps.select(["id", "method", "layer", "target"])
    )
    np.testing.assert_allclose(other.maps["raw_max"].to_numpy(), study.maps["raw_max"].to_numpy(), rtol=1e-3, atol=1e-5)
    same_scores(other, study)


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


def test_data_with_other_classes_are_refused(loaded, source, tmp_path):
    def with_classes(classes):
        return ArraySource(source.read([0]).numpy(), source.labels[:1] * 0, classes, ("a",), "pets", "test")

    with pytest.raises(WhycamError, match="the network has 10 classes, pets has 2"):
        run_study(*loaded, with_classes(("cat", "dog")), tmp_path / "a", CONFIG)
    with pytest.raises(WhycamError, match=r"class 0 is 'airplane' for the network and 'truck' in pets.*another order"):
        run_study(*loaded, with_classes(tuple(reversed(source.classes))), tmp_path / "b", CONFIG)


def test_baseline_explains_the_first_correct_predictions(loaded, source, tmp_path, study):
    """The first two of each class, for the predicted class; the summary of the errors does not change."""
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
def test_methods_with_other_map_sizes_are_refused(loaded, source, tmp_path, methods, message):
    with pytest.raises(WhycamError, match=message):
        run_study(*loaded, take(source, 5), tmp_path / "study", Config(methods=methods))
    assert not (tmp_path / "study").exists()


def test_progress_of_every_stage(loaded, source, tmp_path):
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


def test_nan_logits_are_refused(loaded, source, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    torch.nn.init.constant_(model[1].weight, torch.nan)
    _, spec = loaded
    config = Config(layers=("layer4[-1]",))
    with pytest.raises(WhycamError):
        run_study(model, spec, source, tmp_path / "study", config)
    from whycam.study import evaluate

    with pytest.raises(WhycamError, match=r"the network's output for test/\d{5} is NaN or infinite"):
        evaluate(model, spec, source)


class CountingSource:
    """A source that counts how often each image is read, by the stage that the study's manifest names."""

    def __init__(self, inner, folder):
        self.inner, self.folder, self.reads = inner, folder, {}

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def read(self, indices):
        manifest = self.folder / "manifest.json"
        stage = json.loads(manifest.read_text())["stage"] if manifest.exists() else "trial"
        self.reads.setdefault(stage, Counter()).update(int(index) for index in indices)
        return self.inner.read(indices)


def test_every_image_is_read_once_to_predict_and_at_most_once_afterwards(loaded, source, tmp_path):
    counting = CountingSource(source, tmp_path / "study")
    config = Config(limit=N, baseline=2, score_images=SCORED)
    done = run_study(*loaded, counting, tmp_path / "study", config)
    assert counting.reads.keys() == {"trial", "predict", "explain"}
    assert counting.reads["trial"] == {0: 1}
    assert counting.reads["predict"] == dict.fromkeys(range(N), 1)
    explained = set(done.maps["index"].to_pylist())
    shown = {source.ids.index(name) for name in done.images}
    assert len(done.scores) > 0
    assert explained - shown  # some of the baseline are not shown,
    assert shown - explained  # and some neighbors are not explained
    assert counting.reads["explain"] == dict.fromkeys(explained | shown, 1)
