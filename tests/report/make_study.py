"""Study folders for the report's tests: valid by the folder's contract, with whatever oddities a test asks for."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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
    status: str = "complete"
    history: Sequence[dict[str, float]] = ()
    ids: Sequence[str] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    correct_explained: int = 0


def wilson(k: int, n: int, z: float = 1.959963984540054) -> list[float]:
    """The Wilson score interval for k successes in n trials."""
    if n == 0:
        return [0.0, 1.0]
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def metrics_of(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """metrics.json of these predictions."""
    n, k = probabilities.shape
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    correct = predicted == labels
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (labels, predicted), 1)
    reliability, ece = [], 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = (confidence > low) & (confidence <= high)
        m = int(inside.sum())
        row = {"low": low, "high": high, "n": m, "confidence": None, "accuracy": None}
        if m:
            row |= {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
            ece += m / n * abs(row["confidence"] - row["accuracy"])
        reliability.append(row)
    per_class = []
    for c, name in enumerate(classes):
        m, good = int((labels == c).sum()), int((correct & (labels == c)).sum())
        per_class.append({"class": name, "n": m, "correct": good, "accuracy": good / m if m else None})
    return {
        "n": n, "correct": int(correct.sum()), "errors": int((~correct).sum()), "accuracy": float(correct.mean()),
        "accuracy_interval": wilson(int(correct.sum()), n),
        "cross_entropy": float(-np.log(probabilities[np.arange(n), labels].clip(1e-12)).mean()),
        "ece": ece, "ece_bins": 15, "reliability": reliability, "confusion": confusion.tolist(),
        "per_class": per_class, "maps": [],
    }  # fmt: skip


def flags_of(values: np.ndarray, coarse: bool) -> list[str]:
    """The flags that the study puts on a raw map."""
    flags = []
    if not np.isfinite(values).all():
        flags.append("non-finite")
    elif not values.any():
        flags.append("all-zero")
    elif values.max() <= 0:
        flags.append("negative-only")
    elif values.max() == values.min():
        flags.append("constant")
    return flags + (["coarse"] if coarse else [])


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth coloured picture with a disc in it."""
    y, x = np.mgrid[0:size, 0:size] / size
    base = rng.integers(30, 220, 3)
    slope = rng.uniform(-90, 90, (2, 3))
    image = base + y[..., None] * slope[0] + x[..., None] * slope[1]
    cy, cx, r = *rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3)
    image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.integers(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def write_folder(
    path: Path,
    recipe: Recipe,
    labels: np.ndarray,
    probabilities: np.ndarray,
    ids: Sequence[str],
    images: dict[int, np.ndarray],
    maps: Sequence[dict[str, Any]],
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write the files of a study folder; ``maps`` rows hold "raw" (h, w) float32 and the identifying columns."""
    path.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    true_p = probabilities[np.arange(n), labels]
    predictions = pa.table({
        "index": pa.array(np.arange(n), pa.int32()), "id": pa.array(list(ids), pa.string()),
        "label": pa.array(labels, pa.int16()), "predicted": pa.array(predicted, pa.int16()),
        "correct": pa.array(predicted == labels), "confidence": pa.array(confidence, pa.float32()),
        "margin": pa.array(confidence - true_p, pa.float32()),
        "loss": pa.array(-np.log(true_p.clip(1e-12)), pa.float32()),
        "probabilities": pa.array(list(probabilities.astype(np.float32)), pa.list_(pa.float32())),
    })  # fmt: skip
    pq.write_table(predictions, path / "predictions.parquet")
    order = sorted(images)
    pq.write_table(
        pa.table({
            "index": pa.array(order, pa.int32()), "id": pa.array([ids[i] for i in order], pa.string()),
            "height": pa.array([images[i].shape[0] for i in order], pa.int16()),
            "width": pa.array([images[i].shape[1] for i in order], pa.int16()),
            "png": pa.array([png(images[i]) for i in order], pa.binary()),
        }),
        path / "images.parquet",
    )  # fmt: skip
    columns: dict[str, list[Any]] = {name: [] for name in MAP_SCHEMA.names}
    for row in maps:
        raw = row["raw"].astype(np.float32)
        finite = raw[np.isfinite(raw)]
        scale = float(np.abs(finite).max()) if finite.size and finite.any() else 1.0
        cells = {
            "index": row["index"], "id": ids[row["index"]], "method": row["method"], "layer": row["layer"],
            "target": row["target"], "class_index": row["class_index"], "score": row["score"],
            "height": raw.shape[0], "width": raw.shape[1], "scale": scale,
            "values": (raw / scale).astype(np.float16).ravel(),
            "raw_min": float(raw.min()), "raw_max": float(raw.max()), "raw_sum": float(raw.sum()),
            "negative_sum": float(np.minimum(raw, 0).sum()), "bias": row.get("bias"),
            "flags": flags_of(raw, coarse=min(raw.shape) <= 4),
        }  # fmt: skip
        for name, value in cells.items():
            columns[name].append(value)
    pq.write_table(pa.table(columns, schema=MAP_SCHEMA), path / "maps.parquet")
    metrics = metrics_of(labels, probabilities, recipe.classes)
    for method in recipe.methods:
        for name, *_ in recipe.layers:
            for target in ("predicted", "true"):
                rows = [i for i, m in enumerate(columns["method"])
                        if (m, columns["layer"][i], columns["target"][i]) == (method, name, target)]  # fmt: skip
                counted: dict[str, int] = {}
                for i in rows:
                    for flag in columns["flags"][i]:
                        counted[flag] = counted.get(flag, 0) + 1
                metrics["maps"].append(
                    {"method": method, "layer": name, "target": target, "n": len(rows), "flags": counted}
                )
    (path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    files = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        for file in sorted(path.iterdir()) if file.name != "manifest.json"
    }  # fmt: skip
    manifest = {
        "format": 1, "status": recipe.status, "stage": "done" if recipe.status == "complete" else "explain",
        "whycam": "0.1.0", "created": "2025-01-31T12:00:00+00:00", "key": "ab" * 32,
        "config": {"layers": [name for name, *_ in recipe.layers], "methods": list(recipe.methods),
                   "targets": ["predicted", "true"], "limit": recipe.limit, "split": "test", "batch_size": 64},
        "model": {"architecture": "resnet18", "classes": list(recipe.classes),
                  "preprocess": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616],
                                 "size": [recipe.size, recipe.size], "channels": "RGB"},
                  "parameters": 11_173_962, "weights_sha256": "cd" * 32,
                  "training": {**recipe.training, **({"history": list(recipe.history)} if recipe.history else {})},
                  "notes": [], "summary": "----\nLayer (type)   Output Shape   Param #\n===="},
        "data": {"name": "CIFAR-10", "split": "test", "n": n, "digest": "ef" * 32, "classes": list(recipe.classes)},
        "layers": [{"name": a, "path": b, "channels": c, "height": d, "width": d} for a, b, c, d in recipe.layers],
        "versions": {"python": "3.11", "torch": "2.13.0", "whycam": "0.1.0"}, "git": None, "device": "cpu",
        "seed": recipe.seed, "timings": {"predict": 1.5, "explain": 2.25}, "files": files,
    }  # fmt: skip
    for key, value in (extra or {}).items():
        manifest[key] = manifest[key] | value if isinstance(value, dict) else value
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


MAP_SCHEMA = pa.schema([
    ("index", pa.int32()), ("id", pa.string()), ("method", pa.string()), ("layer", pa.string()),
    ("target", pa.string()), ("class_index", pa.int16()), ("score", pa.float32()), ("height", pa.int16()),
    ("width", pa.int16()), ("scale", pa.float32()), ("values", pa.list_(pa.float16())),
    ("raw_min", pa.float32()), ("raw_max", pa.float32()), ("raw_sum", pa.float32()),
    ("negative_sum", pa.float32()), ("bias", pa.float32()), ("flags", pa.list_(pa.string())),
])  # fmt: skip


def make_study(path: Path, recipe: Recipe | None = None) -> Path:
    """Write a synthetic study folder: exactly ``recipe.errors`` errors among ``recipe.n`` images."""
    recipe = recipe or Recipe()
    rng = np.random.default_rng(recipe.seed)
    n, k = recipe.n, len(recipe.classes)
    labels = rng.integers(0, k, n)
    wrong = np.zeros(n, bool)
    wrong[rng.choice(n, recipe.errors, replace=False)] = True
    # Errors fall on neighbouring classes more often than on others, as in real confusion matrices.
    shift = np.minimum(rng.geometric(0.45, n), k - 1)
    predicted = np.where(wrong, (labels + shift) % k, labels)
    rest = rng.dirichlet(np.full(k, 0.3), n)
    top = np.where(wrong, rng.uniform(0.55, 0.99, n), rng.uniform(0.6, 1, n))
    rest[np.arange(n), predicted] = 0
    rest /= rest.sum(1, keepdims=True)
    probabilities = rest * (1 - top)[:, None]
    probabilities[np.arange(n), predicted] = top
    ids = list(recipe.ids) if recipe.ids is not None else [f"test/{i:05d}" for i in range(n)]
    explained = np.flatnonzero(wrong)[: recipe.limit]
    good = np.flatnonzero(~wrong)[: recipe.correct_explained]
    images = {int(i): picture(rng, recipe.size) for i in [*explained, *good]}
    maps = []
    for number, i in enumerate([*explained, *good]):
        for method in recipe.methods:
            for name, _, _, side in recipe.layers:
                for target in ("predicted", "true") if wrong[i] else ("predicted",):
                    raw = recipe.make_map(rng, number, method, name, target, side)
                    bias = 0.1 if name == "layer4[-1]" else None
                    maps.append({
                        "index": int(i), "method": method, "layer": name, "target": target, "raw": raw,
                        "class_index": int(predicted[i] if target == "predicted" else labels[i]),
                        "score": float(np.nansum(raw)) + 0.1, "bias": bias,
                    })  # fmt: skip
    return write_folder(path, recipe, labels, probabilities, ids, images, maps)
