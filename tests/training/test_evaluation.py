"""Evaluation against slow references, and the hold-out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny import PREPROCESS, Tiny, small

from whycam.data import ArraySource
from whycam.errors import WhycamError
from whycam.training import evaluate_logits, evaluate_model, hold_out, predict_logits
from whycam.training.device_dataset import DeviceDataset
from whycam.training.evaluation import VIEWS, Evaluation


@pytest.fixture(scope="module")
def data():
    return DeviceDataset(small(0, 60), PREPROCESS, torch.device("cpu"))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny(10).double().float()
        for module in (model.bn1, model.bn2):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def shifted(image, down, right):
    """A (3, H, W) image moved by a pixel, with a mirrored edge."""
    height, width = image.shape[1:]
    result = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - down, column - right
            y = -y if y < 0 else 2 * (height - 1) - y if y >= height else y
            x = -x if x < 0 else 2 * (width - 1) - x if x >= width else x
            result[:, row, column] = image[:, y, x]
    return result


def test_the_views_equal_their_definitions(data, network):
    answers = {view: predict_logits(network, data, view=view, batch_size=7) for view in VIEWS}
    x, _ = data.plain_batch(0, 60)

    @torch.no_grad()
    def ask(images):
        return network(torch.from_numpy(np.ascontiguousarray(images))).double().numpy()

    pixels = x.numpy()
    plain = ask(pixels)
    flip = (plain + ask(pixels[..., ::-1])) / 2
    moved = []
    for step in (1, -1):
        one = np.stack([shifted(image, step, step) for image in pixels])
        moved.append((ask(one) + ask(one[..., ::-1])) / 2)
    six = flip / 2 + (moved[0] + moved[1]) / 4
    for view, expected in (("plain", plain), ("flip", flip), ("six", six)):
        np.testing.assert_allclose(answers[view].numpy(), expected, atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_training_scores_equal_a_slow_reference(n, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 4, generator=draw)
    labels = torch.randint(3, (n,), generator=draw)  # the last class has no images
    result = evaluate_logits(logits, labels)
    hits, totals, loss = [0] * 4, [0] * 4, 0.0
    bins = [[] for _ in range(15)]
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        loss -= np.log(p[label]) / n
        right = int(p.argmax() == label)
        hits[label] += right
        totals[label] += 1
        bins[next(b for b in range(15) if p.max() <= (b + 1) / 15 or b == 14)].append((right, p.max()))
    ece = sum(abs(sum(r for r, _ in b) - sum(c for _, c in b)) for b in bins) / n
    assert (result.images, result.correct) == (n, sum(hits))
    assert result.loss == pytest.approx(loss, rel=1e-9)
    assert result.ece == pytest.approx(ece, abs=1e-9)
    assert result.per_class == tuple(h / t if t else None for h, t in zip(hits, totals, strict=True))
    assert Evaluation.from_dict(result.to_dict()) == result


def test_evaluation_restores_the_modes(data, network):
    network.train()
    network.bn1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate_model(network, data)
    assert (network.training, network.bn1.training, network.bn2.training) == (True, False, True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.data())
def test_a_hold_out_is_stratified_and_complete(labels, data):
    n = len(labels)
    source = ArraySource(
        np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1).repeat(3, 1), np.array(labels, dtype=np.int64),
        tuple("abcde"), tuple(f"train/{i}" for i in range(n)), "numbers", "train",
    )  # fmt: skip
    images = data.draw(st.integers(1, n - 1))
    training, validation = hold_out(source, images)
    assert (len(validation), len(training)) == (images, n - images)
    assert sorted([*training.ids, *validation.ids]) == sorted(source.ids)
    for label in range(5):
        share = labels.count(label) * images / n
        assert abs(int((validation.labels == label).sum()) - share) < 1
    assert validation.read([0]).flatten()[0] == source.images[validation.indices[0], 0, 0, 0]
    assert hold_out(source, images)[1].digest == validation.digest != training.digest


@pytest.mark.parametrize("images", [0, 60, 61, -1])
def test_impossible_hold_out_error(images):
    with pytest.raises(WhycamError) as error:
        hold_out(small(0, 60), images)
    assert str(error.value) == f"CIFAR-10 sample: cannot hold out {images} of 60 images; hold out fewer"


def test_hold_out_depends_only_on_its_seed():
    """Runs of different versions must be compared on the same images."""
    first, second = (hold_out(small(0, 60), 10, seed=seed)[1] for seed in (0, 1))
    assert first.indices.tolist() != second.indices.tolist()
    assert first.indices.tolist() == hold_out(small(0, 60), 10)[1].indices.tolist()
