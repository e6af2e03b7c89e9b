"""Deletion and insertion: the pixels altered at every step, the area under the curve, and the bundled network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from square_net import SIDE, LargestTensor, SquareNet, scene
from torch import nn

import whycam
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.baselines import background
from whycam.metrics.faithfulness.insertion_deletion import Curve, deletion, insertion

BOTH = pytest.mark.parametrize("curve", [deletion, insertion])


def maps_without_ties(count, height=SIDE, width=SIDE, seed=1):
    """Permutations, centered."""
    draw = torch.Generator().manual_seed(seed)
    order = [torch.randperm(height * width, generator=draw) for _ in range(count)]
    return (torch.stack(order).float() - height * width / 2).view(count, height, width)


def as_binary_number(x):
    """Score a 4 × 4 image of zeros and ones by the number whose binary digits are its pixels."""
    return (x[:, 0].flatten(1) * 2.0 ** torch.arange(16)).sum(dim=1)


def pixels_of(scores):
    """(n,) numbers → (n, 16) pixels."""
    return scores.long()[:, None] >> torch.arange(16) & 1


@pytest.mark.parametrize("fill", ["black", "mean", "given"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_curves_equal_a_slow_loop(fill, steps):
    images, _ = scene(3, torch.float64)
    model, maps, targets = SquareNet().eval(), maps_without_ties(3), [0, 1, 0]
    places = {
        "black": torch.zeros_like(images),
        "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images),
        "given": images.flip(0),
    }[fill]
    options = {"fill": places if fill == "given" else fill, "steps": steps}
    deleted, inserted = (curve(model, images, maps, targets, **options) for curve in (deletion, insertion))
    counts = np.round(np.linspace(0, SIDE * SIDE, steps + 1)).astype(int)
    assert deleted.shares == inserted.shares == pytest.approx(counts / SIDE**2)
    for b, target in enumerate(targets):
        highest_first = np.argsort(-maps[b].numpy().ravel())
        expected = {"deleted": [], "inserted": []}
        for count in counts:
            chosen = [(place // SIDE, place % SIDE) for place in highest_first[:count]]
            for name, start, end in (("deleted", images, places), ("inserted", places, images)):
                altered = start[b].clone()
                for y, x in chosen:
                    altered[:, y, x] = end[b, :, y, x]
                expected[name].append(float(model(altered[None]).softmax(dim=1)[0, target]))
        for name, found in (("deleted", deleted), ("inserted", inserted)):
            assert found.scores[b].tolist() == pytest.approx(expected[name], abs=1e-6)
            area = sum(
                (counts[i + 1] - counts[i]) / SIDE**2 * (expected[name][i] + expected[name][i + 1]) / 2
                for i in range(steps)
            )
            assert float(found.area[b]) == pytest.approx(area, abs=1e-6)
    assert deleted.scores.shape == (3, steps + 1)
    assert deleted.area.shape == (3,)


@BOTH
def test_coarse_maps_are_resized_bilinearly(curve):
    images, _ = scene(3)
    coarse = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3))
    fine = nn.functional.interpolate(coarse[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(curve(SquareNet(), images, coarse, 0).scores, curve(SquareNet(), images, fine, 0).scores)


@pytest.mark.parametrize("levels", [1, 2, 3, 16])
def test_each_step_alters_its_exact_share_of_the_highest_pixels(levels):
    """With any number of ties; and altered pixels stay altered in later steps."""
    draw = torch.Generator().manual_seed(levels)
    maps = torch.randint(levels, (6, 4, 4), generator=draw) - 1.0
    for steps in (1, 3, 5, 16):
        counts = np.round(np.linspace(0, 16, steps + 1)).astype(int)
        found = deletion(as_binary_number, torch.ones(6, 1, 4, 4), maps, steps=steps)
        for b in range(6):
            removed = 1 - pixels_of(found.scores[b])
            assert removed.sum(dim=1).tolist() == counts.tolist()
            assert (removed.diff(dim=0) >= 0).all()
            for step in removed[1:-1].bool():
                assert maps[b].flatten()[step].min() >= maps[b].flatten()[~step].max()
        # Insertion shows the pixels that deletion removed, ties included: together they are the whole image.
        inserted = insertion(as_binary_number, torch.ones(6, 1, 4, 4), maps, steps=steps, fill="black")
        assert torch.equal(found.scores + inserted.scores, torch.full((6, steps + 1), 2.0**16 - 1))


def test_ties_are_broken_at_random():
    found = deletion(as_binary_number, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2)
    often = pixels_of(found.scores[:, 1]).float().mean(dim=0)
    assert (often - 0.5).abs().max() < 0.08  # four and a half standard errors
    same = deletion(as_binary_number, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2)
    other = deletion(as_binary_number, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2, seed=1)
    assert torch.equal(same.scores, found.scores)
    assert not torch.equal(other.scores, found.scores)


@pytest.mark.parametrize("fill", ["black", "mean", "blur", torch.tensor(0.25)])
def test_deletion_is_the_reversed_insertion_of_the_negated_map(fill):
    """Deleting the s highest pixels gives the same image as inserting all others, the lowest first."""
    images = torch.rand(3, 2, 9, 8, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(5))
    maps = maps_without_ties(3, 9, 8)

    def linear(x):
        return (weights * x).sum(dim=(1, 2, 3))

    for steps in (1, 6, 72):
        deleted = deletion(linear, images, maps, fill=fill, steps=steps)
        inserted = insertion(linear, images, -maps, fill=fill, steps=steps)
        torch.testing.assert_close(deleted.scores, inserted.scores.flip(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(deleted.area, inserted.area, atol=1e-5, rtol=0)
        torch.testing.assert_close(deleted.scores[:, 0], linear(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(deleted.scores[:, -1], linear(background(images, fill)), atol=1e-5, rtol=0)
    # Pixel by pixel: a linear score falls by each pixel's contribution.
    pixel = ((weights * (images - background(images, fill))).sum(dim=1)).flatten(1)
    lost = pixel.gather(1, maps.flatten(1).argsort(dim=1, descending=True))
    torch.testing.assert_close(-deleted.scores.diff(dim=1), lost, atol=1e-5, rtol=0)


def test_areas_by_hand():
    shares = (0.0, 0.25, 1.0)
    scores = torch.tensor([[1.0, 0.5, 0.1], [0.3, 0.3, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.25 * 0.75 + 0.75 * 0.3, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(Curve(shares, scores).area, expected)


@BOTH
def test_the_area_under_a_constant_score_is_that_score(curve):
    images, truth = scene(3)
    for steps in (1, 7, 144):
        found = curve(lambda x: x.new_full((len(x),), 0.3), images, truth, steps=steps)
        torch.testing.assert_close(found.area, torch.full((3,), 0.3))


def test_the_true_map_scores_better_than_noise_and_noise_better_than_the_negated_map():
    images, truth = scene(20)
    candidates = (truth, maps_without_ties(20), -truth)
    for fill in ("black", "mean", "blur"):
        right, none, wrong = (deletion(SquareNet(), images, maps, 0, fill=fill).area.mean() for maps in candidates)
        assert right < none < wrong
        right, none, wrong = (insertion(SquareNet(), images, maps, 0, fill=fill).area.mean() for maps in candidates)
        assert right > none > wrong


def test_default_fills_are_black_for_deletion_and_blur_for_insertion():
    images, truth = scene(2)
    assert torch.equal(
        deletion(SquareNet(), images, truth, 0).scores,
        deletion(SquareNet(), images, truth, 0, fill="black").scores,
    )
    assert torch.equal(
        insertion(SquareNet(), images, truth, 0).scores,
        insertion(SquareNet(), images, truth, 0, fill="blur").scores,
    )


@BOTH
def test_a_curve_does_not_depend_on_the_rest_of_the_batch(curve):
    images, _ = scene(5)
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(7)).float()  # full of ties
    targets = torch.tensor([0, 1, 1, 0, 1])
    seeds = [11, 12, 13, 14, 15]
    whole = curve(SquareNet(), images, maps, targets, seed=seeds)
    for order in ([4, 2], [0], [3, 1, 4, 0, 2]):
        some = curve(SquareNet(), images[order], maps[order], targets[order], seed=[seeds[i] for i in order])
        torch.testing.assert_close(some.scores, whole.scores[order], atol=1e-6, rtol=0)
    first = curve(SquareNet(), images[:2], maps[:2], targets[:2], seed=3)
    torch.testing.assert_close(
        first.scores, curve(SquareNet(), images, maps, targets, seed=3).scores[:2], atol=1e-6, rtol=0
    )
    empty = curve(SquareNet(), images[:0], maps[:0], 0)
    assert empty.scores.shape == (0, 33)
    assert empty.area.shape == (0,)


@BOTH
def test_batch_size_limits_memory_and_does_not_change_the_curve(curve):
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(8)).float()
    images, batches = torch.ones(5, 1, 4, 4), []

    def model(x):
        batches.append(len(x))
        return as_binary_number(x)

    # Black, because a blur of ones is still all ones.
    with LargestTensor() as largest:
        curve(model, images, maps, steps=7, fill="black", batch_size=6)
    assert largest.elements == 6 * 16
    batches.clear()
    whole = curve(model, images, maps, steps=7, fill="black")
    assert batches == [40]
    for size in (1, 3, 13):
        batches.clear()
        assert torch.equal(curve(model, images, maps, steps=7, fill="black", batch_size=size).scores, whole.scores)
        assert max(batches) == size
        assert sum(batches) == 40


@BOTH
def test_only_the_order_of_map_values_matters(curve):
    images, _ = scene(3)
    maps, model = maps_without_ties(3) / 50, SquareNet().eval()
    plain = curve(model, images, maps, 1)
    for same in (3 * maps, maps + 7, maps.exp(), maps.double()):
        assert torch.equal(curve(model, images, same, 1).scores, plain.scores)
    shifted = curve(lambda x: model(x / 2 + 0.5), images, maps, 1, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.scores, plain.scores, atol=1e-6, rtol=0)
    scored = curve(lambda x: model(x).softmax(dim=1)[:, 1], images, maps)
    torch.testing.assert_close(scored.scores, plain.scores)


@BOTH
def test_the_model_is_not_changed(curve):
    images, truth = scene(2)
    model, calls = SquareNet().train(), []
    model.dropout.eval()
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    curve(model, images, truth, 0, steps=3)
    assert calls == [False]
    with pytest.raises(ZeroDivisionError):
        curve(model, images, truth, 0, preprocess=lambda x: x / (1 // 0))
    for state in (model.training, not model.dropout.training, torch.is_grad_enabled(), len(model._forward_hooks) == 1):
        assert state
    model.dropout.train()
    torch.testing.assert_close(
        curve(model, images, truth, 0).scores, curve(SquareNet().eval(), images, truth, 0).scores
    )


@BOTH
def test_wrong_arguments_are_refused(curve):
    images, maps = scene(2)
    broken = maps.clone()
    broken[1, 0, 0] = torch.inf
    cases = [
        ((SquareNet(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((SquareNet(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((SquareNet(), images, broken, 0), {}, "map 1 holds NaN or infinity: its pixels have no order"),
        ((SquareNet(), images, maps.double() * 1e300, 0), {}, "map 0 holds NaN or infinity"),
        ((SquareNet(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((SquareNet(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((SquareNet(), images, maps), {}, r"answered 64 images with \(64, 2\), expected one score"),
        ((lambda x: x.mean(dim=(1, 2, 3)), images, maps, 0), {}, r"expected \(n, K\) logits"),
        ((lambda x: SquareNet()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        (
            (SquareNet(), images, maps, 0),
            {"steps": 0},
            "steps must lie between 1 and the 144 pixels of an image, got 0",
        ),
        ((SquareNet(), images, maps, 0), {"steps": 145}, "the 144 pixels of an image, got 145"),
        ((SquareNet(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
        ((SquareNet(), images, maps, 0), {"fill": "white"}, "fill is 'black', 'mean', 'blur' or a tensor"),
        ((SquareNet(), images, maps, 0), {"batch_size": 0}, "the batch size must be at least 1, got 0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            curve(*arguments, **options)


def test_on_the_bundled_network_grad_cam_scores_better_than_its_negative(model, spec):
    pixels = whycam.open_source("bundled").read(range(16)).float() / 255
    explanation = whycam.explain(model, spec.preprocess(pixels), ["layer4[-1]"], ["gradcam"])
    maps, targets = explanation.map("gradcam", "layer4[-1]"), explanation.predicted
    deleted, deleted_negative, inserted, inserted_negative = (
        curve(model, pixels, sign * maps, targets, preprocess=spec.preprocess, steps=8).area.mean()
        for curve in (deletion, insertion)
        for sign in (1, -1)
    )
    assert deleted < deleted_negative
    assert inserted > inserted_negative
