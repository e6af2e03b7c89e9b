"""Compare explanation methods on a checkpoint and a data set, and write the result to a folder."""

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
from whycam.comparison.ranking import Comparison
from whycam.comparison.run import compare
from whycam.data.preprocess import resize_center_crop
from whycam.data.source import ImageSource
from whycam.device import device_name
from whycam.errors import WhycamError, check_batch_size
from whycam.files import replacing, write_bytes, writing
from whycam.models.checkpoint import ModelSpec, check_classes
from whycam.models.resnet import study_layers
from whycam.nn_utils import unwrapped
from whycam.progress import Progress, quiet
from whycam.seeds import generator

RESULT, SCORES = "comparison.json", "scores.parquet"


@dataclass(frozen=True, eq=False)
class Compared:
    """The result of `compare_on`.

    Attributes:
        comparison: the scores.
        record: the content of ``comparison.json``.
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
    metrics: Sequence[str] | None = None,
    images: int = 32,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> Compared:
    """Compare methods on random images of ``source``; write ``comparison.json`` and ``scores.parquet`` to ``out``.

    Args:
        model: a network; not changed.
        spec: its classes, preprocessing and digest.
        source: the images; their labels are not used.
        out: a folder; it is made if it does not exist.
        methods: names.
        layers: names; by default the three layers of the study, or the last layer with spatial positions of other
            networks.
        metrics: names, see `whycam.comparison.METRICS`; by default those that work for this network and these images.
        images: the number of images to draw; all images if there are fewer.
        seed: seeds the draw and all other random numbers.
        batch_size: images in one forward pass.
        progress: called with (metric, done, total).

    Raises:
        WhycamError: an argument is unknown or does not fit the network, or the folder cannot be written.
    """
    check_classes(spec, source)
    if images < 2:
        raise WhycamError(f"compare on at least 2 images, better on 50; got {images}")
    check_batch_size(batch_size)
    out, network = Path(out), unwrapped(model)
    device = next(network.parameters()).device
    if layers is None:
        first = spec.preprocess(source.read([0]).to(device))
        layers = study_layers(network) or (default_layer(network, first).name,)
    resolve_layers(network, layers)  # refuses unknown layers before the images are read
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawn = torch.randperm(len(source), generator=generator("comparison", seed))[:images].sort().values.numpy()
    pixels = resize_center_crop(source.read(drawn).to(device).float() / 255, spec.preprocess.size).clamp(0, 1)
    found = compare(
        network, pixels, methods, layers, preprocess=spec.preprocess.normalize, metrics=metrics, seed=seed,
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
    """A row for each metric, method, layer and image. "unit" is the position of the image in ``drawn``."""
    parts = [
        pa.table(
            {
                "measure": pa.array([metric] * len(values), pa.string()),
                "method": pa.array([method] * len(values), pa.string()),
                "layer": pa.array([layer] * len(values), pa.string()),
                "unit": pa.array(np.arange(len(values)), pa.int32()),
                "score": pa.array(values.numpy(), pa.float64()),
            }
        )
        for metric, scores in found.scores.items()
        for (method, layer), values in scores.items()
    ]
    return pa.concat_tables(parts)
