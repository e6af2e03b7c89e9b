"""Errors whose label may be the wrong one: what the network and the nearest images say against it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]

LABEL_ISSUES = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("label", pa.int16()),
        ("predicted", pa.int16()),
        ("margin", pa.float32()),  # probability of the predicted class minus the label's
        ("votes", pa.int16()),  # how many nearest images there are
        ("votes_predicted", pa.int16()),  # how many of them are labeled as predicted
        ("votes_label", pa.int16()),  # how many of them carry this image's label
        ("score", pa.float32()),  # mean of the two margins; the first alone where there are no votes
        ("confident", pa.bool_()),  # the predicted class is at least as probable as it usually is on its own images
        ("suspect", pa.bool_()),  # confident, and more neighbors carry the predicted class than the label
    ]
)


def label_issues(predictions: pa.Table, neighbors: pa.Table | None) -> pa.Table:
    """One row per error, the most suspicious label first.

    ``confident`` is the off-diagonal of confident learning's joint (Northcutt, Jiang and Chuang, "Confident learning:
    estimating uncertainty in dataset labels", JAIR 2021): the probability of the predicted class reaches that class's
    threshold, its mean probability over the images that are labeled so. The network's margin is their normalized
    margin with the sign turned. The other margin is the same of the labels of the nearest images: the share that
    carries the predicted class minus the share that carries the label. Both lie between −1 and 1; the score is their
    mean. The method supposes probabilities for images that the network was not trained on.

    Args:
        predictions: the study's, one row per image.
        neighbors: the study's, or None.
    """
    label, predicted = (predictions[name].to_numpy().astype(np.int64) for name in ("label", "predicted"))
    confidence = predictions["confidence"].to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~predictions["correct"].to_numpy(zero_copy_only=False))
    margin = predictions["margin"].to_numpy().astype(np.float64)[wrong]
    own = np.where(label == predicted, confidence, np.exp(-predictions["loss"].to_numpy().astype(np.float64)))
    confident = confidence[wrong] >= _thresholds(label, own, predicted[wrong])
    votes = _votes(neighbors, label, wrong, predicted)
    total = votes.sum(axis=1)
    other = np.divide(votes[:, 0] - votes[:, 1], total, out=np.zeros(len(wrong)), where=total > 0)
    score = np.where(total > 0, (margin + other) / 2, margin)
    against = np.where(total > 0, votes[:, 0] > votes[:, 1], True)
    columns = [
        predictions["index"].to_numpy()[wrong], predictions["id"].take(pa.array(wrong)).to_pylist(), label[wrong],
        predicted[wrong], margin, total, votes[:, 0], votes[:, 1], score, confident, confident & against,
    ]  # fmt: skip
    arrays = [
        pa.array(values, type=field.type, safe=False) for values, field in zip(columns, LABEL_ISSUES, strict=True)
    ]
    order = np.lexsort((wrong, -score, ~(confident & against)))
    return pa.table(arrays, schema=LABEL_ISSUES).take(pa.array(order))


def _thresholds(label: npt.NDArray[np.int64], own: Floats, classes: npt.NDArray[np.int64]) -> Floats:
    """For each of ``classes`` the mean probability of that class over the images labeled so; 1 where there is none."""
    k = int(max(label.max(initial=0), classes.max(initial=0))) + 1
    count = np.bincount(label, minlength=k)
    mean = np.divide(np.bincount(label, own, k), count, out=np.ones(k), where=count > 0)
    return mean[classes]


def _votes(
    neighbors: pa.Table | None,
    label: npt.NDArray[np.int64],
    wrong: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """(E, 3) how many of an error's nearest images carry the predicted class, its label, another class."""
    out = np.zeros((len(wrong), 3), np.int64)
    if neighbors is None:
        return out
    table = neighbors.filter(pc.equal(neighbors["kind"], "any"))
    error = np.searchsorted(wrong, table["index"].to_numpy())
    found = label[table["neighbour_index"].to_numpy()]
    kind = np.where(found == predicted[wrong][error], 0, np.where(found == label[wrong][error], 1, 2))
    np.add.at(out, (error, kind), 1)
    return out
