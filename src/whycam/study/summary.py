"""The numbers of a study: the classifier's scores and a summary of the maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from whycam.metrics.classification import score_classification
from whycam.study.road_scores import summarize_scores

MEASURED = ("index", "method", "layer", "target", "score", "raw_sum", "negative_sum", "flags")
"""The columns of the table of maps that `measure` needs."""


def measure(
    predictions: pa.Table, maps: pa.Table, classes: Sequence[str], map_scores: pa.Table | None = None
) -> dict[str, Any]:
    """The contents of ``metrics.json``.

    Args:
        predictions: the study's table.
        maps: likewise; ``MEASURED`` columns suffice.
        classes: class names.
        map_scores: the table of scores, or None if no map was scored.
    """
    logits = np.stack(predictions["logits"].to_numpy())
    labels = predictions["label"].to_numpy().astype(np.int64)
    scores = score_classification(torch.from_numpy(logits), torch.from_numpy(labels))
    # Maps of correct predictions are only compared with; the summary is of the errors' maps.
    wrong = predictions.filter(pc.invert(predictions["correct"]))["index"]
    errors = maps.filter(pc.is_in(maps["index"], wrong.combine_chunks()))
    measured = scores.to_dict(classes) | {"maps": summarize_maps(errors)}
    return measured if map_scores is None else measured | {"map_scores": summarize_scores(map_scores)}


def summarize_maps(maps: pa.Table) -> list[dict[str, Any]]:
    """One entry per method, layer and target: counts of flags, and medians of the maps' sums in units of the logit."""
    keys = list(zip(*(maps[name].to_pylist() for name in ("method", "layer", "target")), strict=True))
    result = []
    for method, layer, target in dict.fromkeys(keys):
        chosen = maps.filter(
            pc.and_(
                pc.and_(pc.equal(maps["method"], method), pc.equal(maps["layer"], layer)),
                pc.equal(maps["target"], target),
            )
        )
        total = chosen["raw_sum"].to_numpy().astype(np.float64)
        negative = chosen["negative_sum"].to_numpy().astype(np.float64)
        flags = Counter(flag for found in chosen["flags"].to_pylist() for flag in found)
        result.append(
            {
                "method": method,
                "layer": layer,
                "target": target,
                "n": len(chosen),
                "flags": dict(sorted(flags.items())),
                "positive_median": _median(total - negative),
                "negative_median": _median(negative),
                "sum_median": _median(total),
                "score_median": _median(chosen["score"].to_numpy().astype(np.float64)),
            }
        )
    return result


def _median(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
