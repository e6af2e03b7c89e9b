"""Mosaics: their cells, how they are drawn, and which images qualify."""

from __future__ import annotations

import pytest
import torch

from whycam.errors import WhycamError
from whycam.metrics.localization.mosaic import confident, mosaics


def numbered(count, channels=2, side=3):
    """Images whose pixels hold their number."""
    return (torch.arange(count) / count).view(-1, 1, 1, 1).expand(count, channels, side, side + 1)


def test_each_cell_shows_its_image():
    images = torch.rand(30, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    made = mosaics(images, [i % 6 for i in range(30)], grid=2, count=12)
    assert made.images.shape == (12, 3, 10, 8)
    assert made.members.shape == made.classes.shape == (12, 4)
    assert made.grid == 2
    for mosaic, members in zip(made.images, made.members.tolist(), strict=True):
        for cell, member in enumerate(members):
            row, column = 5 * (cell // 2), 4 * (cell % 2)
            assert torch.equal(mosaic[:, row : row + 5, column : column + 4], images[member])


def test_classes_are_drawn_evenly_and_once_per_mosaic():
    labels = torch.tensor([7, 3, 1, 0, 5] * 8)
    made = mosaics(numbered(40), labels, grid=2, count=400)
    assert torch.equal(made.classes, labels[made.members])
    assert all(len(set(row)) == 4 for row in made.classes.tolist())
    often = torch.stack([(made.classes == kind).float().mean(dim=0) for kind in (0, 1, 3, 5, 7)])
    assert (often - 0.2).abs().max() < 0.08  # each class in each cell
    assert made.members.unique().tolist() == list(range(40))
    assert len({tuple(row) for row in made.members.tolist()}) > 390


def test_mosaics_depend_only_on_the_seed():
    labels = torch.arange(40) % 10
    made = mosaics(numbered(40), labels, count=5, seed=3)
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(mosaics(numbered(40), labels.numpy(), count=9, seed=3).members[:5], made.members)
    assert not torch.equal(mosaics(numbered(40), labels, count=5, seed=4).members, made.members)
    assert torch.equal(torch.get_rng_state(), state)
    # With as many images as cells, every image is drawn.
    assert mosaics(numbered(9), range(9), count=1).members.sort().values.tolist() == [list(range(9))]


def test_confident_images_are_correct_and_sorted_by_confidence():
    logits = torch.tensor([[1.0, 0], [4, 0], [0, 2], [3, 0], [0, 0]])
    labels = [0, 0, 0, 0, 1]
    assert confident(logits, labels).tolist() == [1, 3, 0]
    assert confident(logits, labels, 0.9).tolist() == [1, 3]
    assert confident(logits + 100, torch.tensor(labels), 0.9).tolist() == [
        1,
        3,
    ]  # a single logit has no absolute meaning
    assert confident(logits, labels, 1).tolist() == []
    assert confident(logits[4:], [0]).tolist() == [0]  # exactly at the threshold


def test_wrong_arguments_are_refused():
    images, labels = numbered(12), torch.arange(12) % 6
    cases = [
        (
            (images, labels),
            {},
            "3×3 needs images of 9 different classes, and there are 6: give more images or a small",
        ),
        ((images[:0], labels[:0]), {}, "9 different classes, and there are 0"),
        ((images, labels[:5]), {}, r"classes must be \(N,\) whole numbers, one for each of 12 images, got \(5,\)"),
        ((images, labels.float()), {}, r"got \(12,\) float32"),
        ((images * 2, labels), {}, r"floats in \[0, 1\]"),
        ((images[0], labels), {}, r"must be \(B, C, H, W\)"),
        (
            (images, labels),
            {"grid": 1},
            "grid must be at least 2 cells per side and count at least 1, got grid=1 and count=100",
        ),
        ((images, labels), {"grid": 2, "count": 0}, "count=0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            mosaics(*arguments, **options)
    with pytest.raises(WhycamError, match=r"got \(3, 2\) and \(2,\)"):
        confident(torch.rand(3, 2), [0, 1])
    with pytest.raises(WhycamError, match=r"threshold must be a probability from 0 to 1, got 50"):
        confident(torch.rand(2, 2), [0, 1], 50)
