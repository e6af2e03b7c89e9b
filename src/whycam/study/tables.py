"""The study folder's tables: their columns, and rows made from tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from whycam.cam.explanation import Explanation
from whycam.cam.maps import flags_of
from whycam.data.decode import encode_png
from whycam.data.source import IndexArray

PREDICTIONS = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("label", pa.int16()),
        ("predicted", pa.int16()),
        ("correct", pa.bool_()),
        ("confidence", pa.float32()),  # probability of the predicted class
        ("margin", pa.float32()),  # probability of the predicted class minus that of the true one; 0 when correct
        ("loss", pa.float32()),  # cross-entropy in nats
        ("probabilities", pa.list_(pa.float32())),
        ("logits", pa.list_(pa.float32())),
    ]
)
IMAGES = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("height", pa.int16()),
        ("width", pa.int16()),
        ("png", pa.binary()),  # the pixels as the network saw them, lossless
    ]
)
MAPS = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("method", pa.string()),
        ("layer", pa.string()),
        ("target", pa.string()),
        ("class_index", pa.int16()),
        ("score", pa.float32()),  # the logit that the map explains
        ("height", pa.int16()),
        ("width", pa.int16()),
        ("scale", pa.float32()),
        ("values", pa.list_(pa.float16())),  # row-major; the raw signed map is values × scale, |values| ≤ 1
        ("raw_min", pa.float32()),
        ("raw_max", pa.float32()),
        ("raw_sum", pa.float32()),
        ("negative_sum", pa.float32()),  # sum of the negative part, ≤ 0
        ("flags", pa.list_(pa.string())),
    ]
)


def prediction_rows(indices: IndexArray, ids: Sequence[str], labels: IndexArray, logits: Tensor) -> pa.Table:
    """One row per image of a batch; ``logits`` is (B, K)."""
    truth = torch.from_numpy(labels)
    log_probabilities = logits.cpu().double().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    confidence, predicted = probabilities.max(dim=1)
    own = probabilities.gather(1, truth[:, None])[:, 0]
    columns = [
        indices,
        list(ids),
        labels,
        predicted.numpy(),
        (predicted == truth).numpy(),
        confidence.numpy(),
        (confidence - own).numpy(),
        (-log_probabilities.gather(1, truth[:, None])[:, 0]).numpy(),
        list(probabilities.float().numpy()),
        list(logits.cpu().float().numpy()),
    ]
    return _table(PREDICTIONS, columns)


def image_rows(indices: IndexArray, ids: Sequence[str], pixels: Tensor) -> pa.Table:
    """One row per image; ``pixels`` is (B, 3, H, W) uint8."""
    height, width = pixels.shape[-2:]
    arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    pngs = [encode_png(array) for array in arrays]
    return _table(IMAGES, [indices, list(ids), [height] * len(pngs), [width] * len(pngs), pngs])


def map_rows(
    indices: IndexArray, ids: Sequence[str], classes: dict[str, IndexArray], explained: Explanation
) -> pa.Table:
    """One row per image, method, layer and target, images outermost.

    Args:
        indices: (B,) positions in the data set.
        ids: their names.
        classes: target name → (B,) class index that it stands for.
        explained: the maps of this batch.
    """
    columns = [_map_columns(key, indices, ids, classes[key[2]], explained) for key in explained.maps]
    table = pa.concat_tables([_table(MAPS, values) for values in columns])
    # Stable: within an image the order of methods, layers and targets stays as asked for.
    order = np.argsort(np.tile(np.arange(len(indices)), len(columns)), kind="stable")
    return table.take(pa.array(order))


def _map_columns(
    key: tuple[str, str, str], indices: IndexArray, ids: Sequence[str], classes: IndexArray, explained: Explanation
) -> list[object]:
    method, layer, target = key
    raw = explained.maps[key].float().cpu()
    images, height, width = raw.shape
    flat = raw.flatten(1)
    # The scale keeps fp16 from overflowing or flushing small maps to zero; a map with no finite extent has scale 0.
    scale = flat.abs().nan_to_num(nan=0.0, posinf=0.0).amax(dim=1)
    unit = torch.where(scale[:, None] > 0, flat / scale[:, None], flat)
    return [
        indices,
        list(ids),
        [method] * images,
        [layer] * images,
        [target] * images,
        classes,
        explained.scores[target].float().cpu().numpy(),
        [height] * images,
        [width] * images,
        scale.numpy(),
        list(unit.half().numpy()),
        flat.amin(dim=1).numpy(),
        flat.amax(dim=1).numpy(),
        flat.sum(dim=1).numpy(),
        flat.clamp(max=0).sum(dim=1).numpy(),
        [list(found) for found in flags_of(raw)],
    ]


def _table(schema: pa.Schema, columns: Sequence[object]) -> pa.Table:
    arrays = [pa.array(values, type=field.type, safe=False) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
