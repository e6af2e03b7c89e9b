"""Errors whose label may be wrong, by the network's probabilities and the labels of the nearest images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whycam.study.tables import LABEL_ISSUES

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def label_issues(predictions: pa.Table, neighbors: pa.Table | None) -> pa.Table:
    """One row per error, the most suspicious label first.

    ``confident`` is the off-diagonal of confident learning's joint (Northcutt, Jiang and Chuang, "Confident learning:
    estimating uncertainty in dataset labels", JAIR 2021): the probability of the predicted class reaches that class's
    threshold, its mean probability over the images that carry its label. ``margin`` is their normalized margin with
    the opposite sign. The second margin is computed from the labels of the nearest images: the share that carries the
    predicted class minus the share that carries the error's label. Both lie between −1 and 1; ``score`` is their mean.
    The method assumes probabilities for images that the network was not trained on.

    Args:
        predictions: the study's, one row per image.
        neighbors: the study's, or None.
    """
    label, predicted = (predictions[name].to_numpy().astype(np.int64) for name in ("label", "predicted"))
    confidence = predictions["confidence"].to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~predictions["correct"].to_numpy(zero_copy_only=False))
    margin = predictions["margin"].to_numpy().astype(np.float64)[wrong]
    label_probability = np.where(
        label == predicted, confidence, np.exp(-predictions["loss"].to_numpy().astype(np.float64))
    )
    confident = confidence[wrong] >= _thresholds(label, label_probability, predicted[wrong])
    votes = _votes(neighbors, label, wrong, predicted)
    total = votes.sum(axis=1)
    neighbor_margin = np.divide(votes[:, 0] - votes[:, 1], total, out=np.zeros(len(wrong)), where=total > 0)
    score = np.where(total > 0, (margin + neighbor_margin) / 2, margin)
    suspect = confident & np.where(total > 0, votes[:, 0] > votes[:, 1], True)
    table = LABEL_ISSUES.build(
        predictions["index"].to_numpy()[wrong], predictions["id"].take(pa.array(wrong)).to_pylist(),
        label=label[wrong], predicted=predicted[wrong], margin=margin, votes=total, votes_predicted=votes[:, 0],
        votes_label=votes[:, 1], score=score, confident=confident, suspect=suspect,
    )  # fmt: skip
    return table.take(pa.array(np.lexsort((wrong, -score, ~suspect))))


def _thresholds(label: Integers, label_probability: Floats, classes: Integers) -> Floats:
    """For each of ``classes`` its mean probability over the images labeled so; 1 for a class without images."""
    k = int(max(label.max(initial=0), classes.max(initial=0))) + 1
    count = np.bincount(label, minlength=k)
    mean = np.divide(np.bincount(label, label_probability, k), count, out=np.ones(k), where=count > 0)
    return mean[classes]


def _votes(neighbors: pa.Table | None, label: Integers, wrong: Integers, predicted: Integers) -> Integers:
    """(E, 3) how many of an error's nearest images carry the predicted class, the error's label, another class."""
    out = np.zeros((len(wrong), 3), np.int64)
    if neighbors is None:
        return out
    table = neighbors.filter(pc.equal(neighbors["kind"], "any"))
    error = np.searchsorted(wrong, table["index"].to_numpy())
    found = label[table["neighbour_index"].to_numpy()]
    kind = np.where(found == predicted[wrong][error], 0, np.where(found == label[wrong][error], 1, 2))
    np.add.at(out, (error, kind), 1)
    return out
