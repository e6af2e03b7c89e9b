"""Label issues: flipped labels come first, and every column equals its definition."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from make_blocks import part

import whycam
from whycam.study.features import directions, features_of, find_head
from whycam.study.label_issues import label_issues
from whycam.study.neighbors import Block, nearest
from whycam.study.tables import neighbor_rows, prediction_rows


def relations_of(logits, labels, features):
    """(predictions, neighbors) as a study makes them."""
    index = np.arange(len(labels))
    predictions = prediction_rows(index, [str(i) for i in index], labels, logits)
    predicted, correct = (torch.from_numpy(predictions[name].to_numpy().copy()) for name in ("predicted", "correct"))
    block = Block(torch.from_numpy(index), torch.from_numpy(labels), correct, directions(features).float())
    wrong = ~correct
    found = nearest(part(block, wrong), predicted[wrong].long(), [block])
    return predictions, neighbor_rows(index[wrong.numpy()], found, lambda i: [str(j) for j in i])


def test_flipped_labels_come_first(loaded):
    """Real images with labels flipped on purpose rank before the network's own errors, as a rule.

    Not always: some of the network's errors look like another class, and some have a wrong label.
    """
    model, spec = loaded
    source = whycam.open_source("bundled")
    with features_of(model, find_head(model, spec.preprocess(source.read([0])))) as seen, torch.inference_mode():
        logits = torch.cat([model.eval()(spec.preprocess(source.read(range(s, s + 50)))) for s in range(0, 1000, 50)])
    labels = np.asarray(source.labels).copy()
    right = np.flatnonzero(logits.argmax(1).numpy() == labels)
    flipped = right[:: len(right) // 40][:40]
    own = 1000 - len(right)
    assert own >= 40
    labels[flipped] = (labels[flipped] + 1 + np.arange(40) % 9) % 10
    rows = label_issues(*relations_of(logits, labels, torch.cat(seen))).to_pylist()
    assert len(rows) == own + 40
    ranks = [rank for rank, row in enumerate(rows) if row["index"] in flipped]
    rest = [rank for rank, row in enumerate(rows) if row["index"] not in flipped]
    # The probability that a flipped label ranks before an error of the network; by chance 0.5, give or take 0.06.
    auc = np.mean([a < b for a in ranks for b in rest])
    assert auc > 0.8
    found = [row["index"] in flipped for row in rows if row["suspect"]]
    assert sum(found) >= 32
    assert np.mean(found) > 0.5


def test_columns_equal_their_definitions():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 90)
    logits = torch.from_numpy(rng.normal(size=(90, 3)) * 2 + 2 * np.eye(3)[labels])
    predictions, neighbors = relations_of(logits, labels, torch.from_numpy(rng.normal(size=(90, 4))))
    probability = logits.double().softmax(1).numpy()
    votes = {}
    for row in neighbors.to_pylist():
        if row["kind"] == "any":
            votes.setdefault(row["index"], []).append(labels[row["neighbour_index"]])
    rows = label_issues(predictions, neighbors).to_pylist()
    assert len(rows) == int((probability.argmax(1) != labels).sum()) > 10
    for row in rows:
        i, label, guess = row["index"], row["label"], row["predicted"]
        margin = probability[i, guess] - probability[i, label]
        ballot = [votes[i].count(guess), votes[i].count(label)]
        confident = probability[i, guess] >= np.mean(probability[labels == guess, guess])
        assert [row["votes_predicted"], row["votes_label"], row["votes"]] == [*ballot, 10]
        assert row["score"] == pytest.approx((margin + (ballot[0] - ballot[1]) / 10) / 2, abs=1e-6)
        assert row["confident"] == confident
        assert row["suspect"] == (confident and ballot[0] > ballot[1])
    keys = [(not row["suspect"], -row["score"]) for row in rows]
    assert keys == sorted(keys)
    alone = {row["index"]: row for row in label_issues(predictions, None).to_pylist()}
    assert all(row["score"] == pytest.approx(row["margin"]) and row["votes"] == 0 for row in alone.values())
    assert len(label_issues(predictions.filter(predictions["correct"]), pa.table(neighbors.slice(0, 0)))) == 0
