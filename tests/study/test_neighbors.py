"""The nearest images of every error, compared with a slow search; reduced pictures of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_blocks import part
from torch import nn

from whycam.study.neighbors import KINDS, Block, nearest, reduced
from whycam.study.tables import neighbor_rows


def blocks_of(rng, n=300, classes=4, dimensions=6):
    label = torch.from_numpy(rng.integers(0, classes, n))
    predicted = torch.where(torch.from_numpy(rng.random(n) < 0.3), torch.from_numpy(rng.integers(0, classes, n)), label)
    features = nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, dimensions))), dim=1).float()
    features[17] = features[40] = features[203]  # equally near to everything
    return Block(torch.arange(n), label, predicted == label, features), predicted


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_neighbors_equal_a_slow_search(size):
    block, predicted = blocks_of(np.random.default_rng(0))
    wrong = ~block.correct
    runs = [part(block, slice(start, start + size)) for start in range(0, 300, size)]
    found = nearest(part(block, wrong), predicted[wrong], runs, shown=3, votes=5)
    cosine = (block.features @ block.features.T).numpy()
    for row, error in enumerate(np.flatnonzero(wrong.numpy())):
        for kind, k in zip(KINDS, (3, 3, 5), strict=True):
            wanted = {"true": block.label[error], "predicted": predicted[error]}.get(kind)
            allowed = [
                i for i in range(300)
                if (i != error if wanted is None else bool(block.correct[i]) and block.label[i] == wanted)
            ]  # fmt: skip
            order = sorted(allowed, key=lambda i: (-round(float(cosine[error, i]), 6), i))[:k]
            values, positions = found[kind]
            assert positions[row].tolist() == order
            np.testing.assert_allclose(values[row], cosine[error, order], atol=1e-6)


def test_fewer_neighbors_give_fewer_rows():
    features = torch.eye(3)
    block = Block(torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([False, True, True]), features)
    found = nearest(part(block, [0]), torch.tensor([1]), [block])
    rows = neighbor_rows(np.array([0]), found, lambda index: [f"i{i}" for i in index]).to_pylist()
    assert [(r["kind"], r["rank"], r["neighbour_id"]) for r in rows] == [
        ("predicted", 1, "i1"), ("predicted", 2, "i2"), ("any", 1, "i1"), ("any", 2, "i2"),
    ]  # fmt: skip


def test_large_images_are_reduced_and_small_ones_kept():
    small = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert reduced(small) is small
    large = torch.randint(0, 256, (2, 3, 192, 96), dtype=torch.uint8)
    half = reduced(large)
    assert half.shape == (2, 3, 96, 48)
    mean = large.float().reshape(2, 3, 96, 2, 48, 2).mean(dim=(3, 5))
    assert (half.float() - mean).abs().max() <= 0.5
