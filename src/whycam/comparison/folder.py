"""Compare explanation methods on a checkpoint and a data set, and keep what came out in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from whycam._version import __version__, versions
from whycam.cam.inspect import default_layer
from whycam.cam.network.layers import resolve_layers
from whycam.comparison.ranking import Comparison, compare
from whycam.data.preprocess import resize_center_crop
from whycam.data.source import ImageSource
from whycam.device import device_name
from whycam.errors import WhycamError
from whycam.files import replacing, write_bytes, writing
from whycam.models.checkpoint import ModelSpec, check_classes
from whycam.models.resnet import study_layers
from whycam.nn_utils import unwrapped
from whycam.progress import Progress, quiet
from whycam.seeds import generator

RESULT, SCORES = "comparison.json", "scores.parquet"


@dataclass(frozen=True, eq=False)
class Compared:
    """What `compare_on` found and where it lies.

    Attributes:
        comparison: the scores.
        record: what ``comparison.json`` holds.
        path: the folder.
    """

    comparison: Comparison
    record: dict[str, Any]
    path: Path


def compare_on(
    model: nn.Module,
    spec: ModelSpec,
    source: ImageSource,
    out: str | Path,
    *,
    methods: Sequence[str],
    layers: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    images: int = 32,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> Compared:
    """Compare methods on images drawn from ``source``; ``comparison.json`` and ``scores.parquet`` go to ``out``.

    Args:
        model: a network; afterwards as it was.
        spec: its classes, preprocessing and digest.
        source: the images; their labels are not looked at.
        out: a folder, made if need be.
        methods: names.
        layers: names; by default the study's three, or the last spatial layer of another network.
        measures: names, see `whycam.comparison.MEASURES`; by default those that the network and the images allow.
        images: how many to draw, all where there are fewer.
        seed: of the draw and of everything else that is random.
        batch_size: images at a time.
        progress: told (measure, done, total).

    Raises:
        WhycamError: something asked for is unknown or does not fit, or the folder cannot be written.
    """
    check_classes(spec, source)
    if images < 2:
        raise WhycamError(f"compare on at least 2 images, better on 50; got {images}")
    if batch_size < 1:
        raise WhycamError(f"the batch size must be at least 1, got {batch_size}")
    out, network = Path(out), unwrapped(model)
    device = next(network.parameters()).device
    if layers is None:
        first = spec.preprocess(source.read([0]).to(device))
        layers = study_layers(network) or (default_layer(network, first).name,)
    resolve_layers(network, layers)  # an unknown one is said before images are read
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawn = torch.randperm(len(source), generator=generator("comparison", seed))[:images].sort().values.numpy()
    pixels = resize_center_crop(source.read(drawn).to(device).float() / 255, spec.preprocess.size).clamp(0, 1)
    found = compare(
        network, pixels, methods, layers, preprocess=spec.preprocess.normalize, measures=measures, seed=seed,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    record = {
        "whycam": __version__,
        "seed": seed,
        "layers": list(layers),
        "model": {"architecture": spec.architecture, "weights_sha256": spec.weights_sha256},
        "data": {"name": source.name, "split": source.split, "n": len(source), "digest": source.digest},
        "drawn": [source.ids[int(place)] for place in drawn],
        "versions": versions(),
        "device": device_name(device),
    } | found.to_dict()
    with replacing(out / SCORES) as partial:
        pq.write_table(_table(found), partial)
    write_bytes(out / RESULT, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return Compared(found, record, out)


def _table(found: Comparison) -> pa.Table:
    """A row per measure, method, layer and unit: an image of ``drawn``, by its place there."""
    parts = [
        pa.table(
            {
                "measure": pa.array([measure] * len(values), pa.string()),
                "method": pa.array([method] * len(values), pa.string()),
                "layer": pa.array([layer] * len(values), pa.string()),
                "unit": pa.array(np.arange(len(values)), pa.int32()),
                "score": pa.array(values.numpy(), pa.float64()),
            }
        )
        for measure, scores in found.scores.items()
        for (method, layer), values in scores.items()
    ]
    return pa.concat_tables(parts)
