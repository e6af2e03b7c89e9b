"""Study folders for the report's tests: valid by the folder's contract, with whatever oddities a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from whycam.cam.maps import flags_of
from whycam.progress import quiet
from whycam.study.folder import MANIFEST, METRICS, write_json
from whycam.study.manifest import digests
from whycam.study.neighbors import reduced
from whycam.study.road_scores import sampled
from whycam.study.shards import parquet_writer
from whycam.study.similarity import FORWARD, shown_neighbors, with_features, write_neighbors
from whycam.study.summary import measure
from whycam.study.tables import IMAGES, MAPS, PREDICTIONS, SCORES, Table, image_rows, prediction_rows

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "\"quotes\" & 'apostrophes' <b>bold</b>",
    "\u202eright-to-left override",
    "🦊 fox 👩‍👩‍👧",
    "long " + "x" * 295,
    "<!-- <script> comment",
    "{{ 7 * 7 }}{% raw %}",
    "שלום عربى",
    "$x_1^2$ \\alpha",
    "\u2028line\u2029separators\u0000\u0007",
)
LAYERS = (("layer2[-2]", "layer2.0", 128, 16), ("layer3[-2]", "layer3.0", 256, 8), ("layer4[-1]", "layer4.1", 512, 4))

MapMaker = Callable[[np.random.Generator, int, str, str, str, int], np.ndarray]


def smooth_map(rng: np.random.Generator, error: int, method: str, layer: str, target: str, side: int) -> np.ndarray:
    """A signed map with one bump, as Grad-CAM draws them."""
    y, x = np.mgrid[0:side, 0:side] / max(1, side - 1)
    cy, cx = rng.uniform(0.2, 0.8, 2)
    bump = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.08)
    return (bump * rng.uniform(0.5, 3) - rng.uniform(0, 0.6) + rng.normal(0, 0.05, (side, side))).astype(np.float32)


@dataclass
class Recipe:
    """What to put into a synthetic study folder."""

    n: int = 400
    errors: int = 40
    classes: Sequence[str] = CIFAR10
    size: int = 32
    methods: Sequence[str] = ("gradcam",)
    layers: Sequence[tuple[str, str, int, int]] = LAYERS
    seed: int = 0
    make_map: MapMaker = smooth_map
    limit: int | None = None
    unexplained: int = 0
    history: Sequence[dict[str, float]] = ()
    ids: Sequence[str] | None = None
    correct_explained: int = 0
    noise: bool = False
    neighbors: bool = True
    pictures: Callable[[int], np.ndarray] | None = None
    scores: int | None = 40  # None: from before there were any


def picture(rng: np.random.Generator, size: int, noise: bool = False) -> np.ndarray:
    """A smooth colored picture with a disc in it."""
    y, x = np.mgrid[0:size, 0:size] / size
    base = rng.integers(30, 220, 3)
    slope = rng.uniform(-90, 90, (2, 3))
    image = base + y[..., None] * slope[0] + x[..., None] * slope[1]
    cy, cx, r = *rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3)
    image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.integers(0, 255, 3)
    if noise:
        image = image + rng.normal(0, 40, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def write_folder(
    path: Path,
    recipe: Recipe,
    labels: np.ndarray,
    logits: np.ndarray,
    ids: Sequence[str],
    images: dict[int, np.ndarray],
    maps: Sequence[dict[str, Any]],
) -> Path:
    """Write the files of a study folder; ``maps`` rows hold "raw" (h, w) float32 and the identifying columns."""
    predictions = prediction_rows(np.arange(len(labels)), ids, labels, torch.from_numpy(logits))
    order = list(images)
    pictures = [
        image_rows(np.array([i]), [ids[i]], torch.from_numpy(images[i]).permute(2, 0, 1)[None].contiguous())
        for i in order
    ]
    columns: dict[str, list[Any]] = {name: [] for name in MAPS.schema.names}
    for row in maps:
        raw = row["raw"].astype(np.float32)
        magnitude = np.where(np.isfinite(raw), np.abs(raw), 0)
        scale = float(magnitude.max())
        cells = row | {
            "id": ids[row["index"]], "height": raw.shape[0], "width": raw.shape[1], "scale": scale,
            "values": (raw / scale if scale > 0 else raw).astype(np.float16).ravel(),
            "raw_min": float(raw.min()), "raw_max": float(raw.max()), "raw_sum": float(raw.sum()),
            "negative_sum": float(np.minimum(raw, 0).sum()),
            "flags": list(flags_of(torch.from_numpy(raw)[None])[0]),
        }  # fmt: skip
        for name in MAPS.schema.names:
            columns[name].append(cells[name])
    table = pa.table(columns, schema=MAPS.schema)
    write(path, PREDICTIONS, [predictions])
    recorded = {"features": {"layer": "linear", "length": 16}} if recipe.neighbors else {}
    write(path, IMAGES, pictures)
    write(path, MAPS, [table])
    scores = None
    if recipe.scores:
        scores = make_scores(recipe, predictions, table)
        write(path, SCORES, [scores])
    write_json(path / METRICS, measure(predictions, table, recipe.classes, scores))
    scoring = {} if recipe.scores is None else {"score_images": recipe.scores}
    training = {"history": list(recipe.history)} if recipe.history else {}
    manifest = {
        "format": 1, "status": "complete", "stage": "complete", "whycam": "0.1.0",
        "created": "2025-01-31T12:00:00+00:00", "key": "ab" * 32,
        "config": {"layers": [name for name, *_ in recipe.layers], "methods": list(recipe.methods),
                   "targets": ["predicted", "true"], "limit": recipe.limit, "split": "test", "batch_size": 64,
                   **scoring},
        "model": {"architecture": "resnet18", "classes": list(recipe.classes),
                  "preprocess": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616],
                                 "size": [recipe.size, recipe.size], "channels": "RGB"},
                  "parameters": 11_173_962, "weights_sha256": "cd" * 32, "training": training,
                  "notes": [], "summary": "----\nLayer (type)   Output Shape   Param #\n===="},
        "data": {"name": "CIFAR-10", "split": "test", "n": len(labels), "digest": "ef" * 32,
                 "classes": list(recipe.classes)},
        "layers": [{"name": a, "path": b, "channels": c, "height": d, "width": d} for a, b, c, d in recipe.layers],
        "versions": {"python": "3.11", "torch": "2.13.0"}, "git": None, "device": "cpu", "seed": None,
        "timings": {"predict": 1.5, "explain": 2.25}, "files": digests(path),
        **recorded,
    }  # fmt: skip
    write_json(path / MANIFEST, manifest)
    return path


def write(path: Path, table: Table, rows: Sequence[pa.Table]) -> None:
    with parquet_writer(table.path(path), table) as writer:
        for some in rows:
            writer.write_table(some)


def make_scores(recipe: Recipe, predictions: pa.Table, maps: pa.Table) -> pa.Table:
    """Scores of a sample of the explained errors: the later the layer, the better, and noise about 0."""
    rng, known = np.random.default_rng(recipe.seed + 1), predictions.to_pylist()
    explained = dict.fromkeys(row["index"] for row in maps.select(["index"]).to_pylist())
    errors = np.array([i for i in explained if not known[i]["correct"]], np.int64)
    names = [(name, method) for method in recipe.methods for name, *_ in recipe.layers]
    rows = []
    for i in sampled(errors, recipe.scores or 0).tolist():
        for place, (layer, method) in enumerate([*names, ("input", "noise"), ("input", "center")]):
            effect = 0.12 * (place % len(recipe.layers)) if layer != "input" else 0.0
            morf, lerf = rng.uniform(0.3, 0.5) - effect, rng.uniform(0.3, 0.5) + effect
            rows.append({
                "index": i, "id": known[i]["id"], "layer": layer, "method": method, "target": "predicted",
                "class_index": known[i]["predicted"], "before": known[i]["confidence"], "morf": morf, "lerf": lerf,
                "combined": (lerf - morf) / 2,
            })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORES.schema)


def make_study(path: Path, recipe: Recipe | None = None) -> Path:
    """Write a synthetic study folder: exactly ``recipe.errors`` errors among ``recipe.n`` images."""
    recipe = recipe or Recipe()
    rng = np.random.default_rng(recipe.seed)
    n, k = recipe.n, len(recipe.classes)
    labels = rng.integers(0, k, n)
    wrong = np.zeros(n, bool)
    wrong[rng.choice(n, recipe.errors, replace=False)] = True
    # Errors fall on neighboring classes more often than on others, as in real confusion matrices.
    shift = np.minimum(rng.geometric(0.45, n), k - 1)
    predicted = np.where(wrong, (labels + shift) % k, labels)
    rest = rng.dirichlet(np.full(k, 0.3), n)
    top = np.where(wrong, rng.uniform(0.55, 0.99, n), rng.uniform(0.6, 1, n))
    rest[np.arange(n), predicted] = 0
    rest /= rest.sum(1, keepdims=True)
    probabilities = rest * (1 - top)[:, None]
    probabilities[np.arange(n), predicted] = top
    logits = np.log(probabilities.clip(1e-12))
    paint = recipe.pictures or (lambda _: picture(rng, recipe.size, recipe.noise))
    ids = list(recipe.ids) if recipe.ids is not None else [f"test/{i:05d}" for i in range(n)]
    explained = np.flatnonzero(wrong)[: recipe.errors - recipe.unexplained]
    good = np.flatnonzero(~wrong)[: recipe.correct_explained]
    images = {int(i): paint(int(i)) for i in [*explained, *good]}
    maps = []
    for number, i in enumerate([*explained, *good]):
        for method in recipe.methods:
            for name, _, _, side in recipe.layers:
                for target in ("predicted", "true") if wrong[i] else ("predicted",):
                    raw = recipe.make_map(rng, number, method, name, target, side)
                    shown = int(predicted[i] if target == "predicted" else labels[i])
                    maps.append({
                        "index": int(i), "method": method, "layer": name, "target": target, "raw": raw,
                        "class_index": shown, "score": float(logits[i, shown]),
                    })  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    if recipe.neighbors:
        # Features lie about the predicted class's, drawn towards the label's; typical images are many images' nearest.
        centers, spread = rng.normal(size=(2, k, 16)), rng.uniform(0.35, 0.6, (n, 1))
        features = centers[0, predicted] + 0.5 * centers[1, labels] + spread * rng.normal(size=(n, 16))
        predictions = prediction_rows(np.arange(n), ids, labels, torch.from_numpy(logits))
        shard = path / "forward.parquet"
        with parquet_writer(shard, FORWARD) as writer:
            writer.write_table(with_features(predictions, torch.from_numpy(features)))
        write_neighbors([shard], path, lambda index: [ids[i] for i in index], quiet)
        shard.unlink()
        for i in shown_neighbors(path).tolist():
            if i not in images:
                images[i] = reduced(torch.from_numpy(paint(i)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    return write_folder(path, recipe, labels, logits, ids, images, maps)
