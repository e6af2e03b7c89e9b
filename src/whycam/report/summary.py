"""The study in sentences: findings and caveats, all computed from its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from whycam.metrics.classification import wilson_interval
from whycam.report.columns import floats
from whycam.report.payload import Payload

Sentence = tuple[tuple[str, bool], ...]
"""Pieces of text; True marks a class name."""


@dataclass(frozen=True)
class Verdict:
    """The sentences at the top of the report.

    Attributes:
        headline: one line, for example "1,323 of 10,000 images misclassified".
        findings: sentences about this study, each in pieces of (text, is a class name).
        caveats: sentences about the limits of this study.
        overconfidence: mean confidence minus accuracy over all images, in [−1, 1].
    """

    headline: str
    findings: tuple[Sentence, ...]
    caveats: tuple[str, ...]
    overconfidence: float


def judge(payload: Payload) -> Verdict:
    """Write the verdict on a study."""
    metrics, n, errors = payload.metrics, int(payload.metrics["n"]), int(payload.metrics["errors"])
    confidence = floats(payload.study.predictions, "confidence")
    over = float(confidence.mean()) - float(metrics["accuracy"]) if n else 0.0
    image = "image" if n == 1 else "images"
    headline = f"{errors:,} of {n:,} {image} misclassified" if errors else f"All {n:,} {image} classified correctly"
    return Verdict(headline, tuple(_findings(payload, over)), tuple(_caveats(payload)), over)


def _findings(payload: Payload, over: float) -> list[Sentence]:
    errors = len(payload.ids)
    out: list[Sentence] = []
    if not errors:
        return [(("There is nothing to explain: every prediction matches its label.", False),)]
    pairs = Counter(
        (min(a, b), max(a, b)) for a, b in zip(payload.label.tolist(), payload.predicted.tolist(), strict=True)
    )
    (a, b), count = pairs.most_common(1)[0]
    out.append((
        (payload.classes[a], True), (" and ", False), (payload.classes[b], True),
        (f" are confused {_times(count)}: {_share(count, errors)} of all errors.", False),
    ))  # fmt: skip
    worst = min((row for row in payload.metrics["per_class"] if row["n"]), key=lambda row: row["correct"] / row["n"])
    low, high = wilson_interval(worst["correct"], worst["n"])
    out.append((
        ("The hardest class is ", False), (worst["class"], True),
        (f": {worst['correct']:,} of {worst['n']:,} right, {worst['correct'] / worst['n']:.1%} "
         f"(95% interval {low:.1%} to {high:.1%}).", False),
    ))  # fmt: skip
    sure = int((floats(payload.errors, "confidence") >= 0.9).sum())
    out.append(((
        f"{sure:,} of {errors:,} errors ({_share(sure, errors)}) were made with a confidence of 90% or more."
        if sure else "No error was made with a confidence of 90% or more.", False,
    ),))  # fmt: skip
    direction = "higher" if over > 0 else "lower"
    out.append(((
        f"Over all images the mean confidence is {abs(over) * 100:.1f} points {direction} than the accuracy "
        f"(expected calibration error {payload.metrics['ece']:.1%}).", False,
    ),))  # fmt: skip
    out.extend(_evidence(payload))
    issues = payload.study.label_issues["suspect"].to_pylist().count(True)
    if issues:
        out.append(((
            f"For {issues:,} of the errors ({_share(issues, errors)}), the label itself may be wrong.", False,
        ),))  # fmt: skip
    return out


def _evidence(payload: Payload) -> list[Sentence]:
    """How often the first method finds no evidence for the predicted class at the deepest layer."""
    last = payload.layers[-1]["name"] if payload.layers else None
    for c in payload.maps.combinations:
        if (c.method, c.layer, c.target) != (payload.methods[0], last, "predicted"):
            continue
        flags = payload.maps.flags(c, slice(None))
        have = int((flags < 128).sum())
        none = int(((flags < 128) & ((flags & 3) > 0)).sum())
        broken = int(((flags < 128) & ((flags & 8) > 0)).sum())
        if not have:
            return []
        found = f"{none:,} of {have:,} maps" if none else f"None of {have:,} maps"
        lead = (
            f"{found} of the predicted class at {last} hold{'s' if none == 1 or not none else ''} no positive evidence"
        )
        return [((lead + (f"; {broken:,} are not finite." if broken else "."), False),)]
    return []


def _caveats(payload: Payload) -> list[str]:
    manifest, errors, explained = payload.manifest, len(payload.ids), payload.explained()
    out = []
    if explained < errors:
        out.append(f"Maps exist for {explained:,} of {errors:,} errors; the others are listed without one.")
    if manifest["config"].get("limit") is not None:
        out.append(f"Only the first {payload.metrics['n']:,} images of the data set were looked at.")
    if payload.metrics["n"] < 1000:
        low, high = payload.metrics["accuracy_interval"]
        out.append(
            f"{payload.metrics['n']:,} images are few: the accuracy may lie anywhere between {low:.1%} and {high:.1%}."
        )
    if "cifar-10" in str(manifest["data"]["name"]).lower().replace("_", "-").replace("cifar10", "cifar-10"):
        out.append(
            "Some errors are label errors: 54 of CIFAR-10's 10,000 test labels are confirmed wrong "
            "(Northcutt et al., 2021). “Labels worth a look” lists where this study would look first."
        )
    coarse = [layer for layer in payload.layers if min(layer["height"], layer["width"]) <= 4]
    if coarse:
        names = _list([f"{layer['name']} ({layer['height']}×{layer['width']})" for layer in coarse])
        out.append(f"{names}: so few cells locate nothing finer than a quarter of the image.")
    return [*out, *(str(note) for note in manifest["model"].get("notes", []))]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part == whole or part / whole >= 0.01 else f"{part / whole:.1%}"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def heat_levels(confusion: Sequence[Sequence[int]]) -> list[list[str]]:
    """A style class for each cell of a confusion matrix.

    "d" is the diagonal and "z" an empty cell. "c1" to "c6" grow with the square root of the count, so that rare
    confusions stay visible beside the most common one.
    """
    counts = np.asarray(confusion, dtype=np.float64).reshape(len(confusion), -1)
    off = counts.copy()
    np.fill_diagonal(off, 0)
    top = sqrt(off.max()) if off.size and off.max() > 0 else 1.0
    levels = np.ceil(np.sqrt(off) / top * 6).astype(int)
    return [
        ["d" if i == j else ("z" if level == 0 else f"c{level}") for j, level in enumerate(row)]
        for i, row in enumerate(levels.tolist())
    ]


def manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The main entries of the manifest as (name, value) texts."""
    model, data, config = manifest["model"], manifest["data"], manifest["config"]
    preprocess = model["preprocess"]
    rows = [
        ("Architecture", f"{model['architecture']}, {model['parameters']:,} parameters"),
        ("Weights SHA-256", model["weights_sha256"]),
        ("Preprocessing", f"{preprocess['size'][0]}×{preprocess['size'][1]} {preprocess['channels']}, "
                          f"mean {_numbers(preprocess['mean'])}, std {_numbers(preprocess['std'])}"),
        ("Data", f"{data['name']}, {data['split']}, {data['n']:,} images"),
        ("Data digest", data["digest"]),
        ("Layers", ", ".join(f"{layer['name']} = {layer['path']} ({layer['channels']} × {layer['height']} × "
                             f"{layer['width']})" for layer in manifest["layers"])),
        ("Methods", ", ".join(config["methods"])),
        ("Targets", ", ".join(config["targets"])),
        ("Limit", "none" if config.get("limit") is None else f"the first {config['limit']:,} images"),
        ("Batch size", str(config.get("batch_size", ""))),
        ("Seed", "none: nothing is drawn at random" if manifest.get("seed") is None else str(manifest["seed"])),
        ("Device", str(manifest.get("device", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())),
        ("Git", str(manifest.get("git") or "not recorded")),
        ("Created", str(manifest.get("created", ""))),
        ("Time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in manifest.get("timings", {}).items())),
        ("Key", str(manifest.get("key", ""))),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
