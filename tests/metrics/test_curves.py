"""Deletion and insertion: which pixels are shown at every step, the area below, and the bundled network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from watcher import SIDE, Largest, Watcher, scene

import whycam
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.baselines import background
from whycam.metrics.faithfulness.insertion_deletion import Curve, deletion, insertion

BOTH = pytest.mark.parametrize("curve", [deletion, insertion])


def distinct(count, height=SIDE, width=SIDE, seed=1):
    """Maps without ties."""
    draw = torch.Generator().manual_seed(seed)
    order = [torch.randperm(height * width, generator=draw) for _ in range(count)]
    return (torch.stack(order).float() - height * width / 2).view(count, height, width)


def bits(x):
    """The score of a 4 × 4 image of zeros and ones: the number whose binary digits its pixels are."""
    return (x[:, 0].flatten(1) * 2.0 ** torch.arange(16)).sum(dim=1)


def pixels_of(scores):
    """(n,) numbers back to (n, 16) digits."""
    return scores.long()[:, None] >> torch.arange(16) & 1


@pytest.mark.parametrize("fill", ["black", "mean", "given"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_the_curves_are_those_of_a_slow_loop(fill, steps):
    images, _ = scene(3, torch.float64)
    model, maps, targets = Watcher().eval(), distinct(3), [0, 1, 0]
    places = {
        "black": torch.zeros_like(images),
        "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images),
        "given": images.flip(0),
    }[fill]
    options = {"fill": places if fill == "given" else fill, "steps": steps}
    gone, come = (curve(model, images, maps, targets, **options) for curve in (deletion, insertion))
    counts = np.round(np.linspace(0, SIDE * SIDE, steps + 1)).astype(int)
    assert gone.shares == come.shares == pytest.approx(counts / SIDE**2)
    for b, target in enumerate(targets):
        highest_first = np.argsort(-maps[b].numpy().ravel())
        expected = {"gone": [], "come": []}
        for count in counts:
            chosen = [(place // SIDE, place % SIDE) for place in highest_first[:count]]
            for name, start, end in (("gone", images, places), ("come", places, images)):
                altered = start[b].clone()
                for y, x in chosen:
                    altered[:, y, x] = end[b, :, y, x]
                expected[name].append(float(model(altered[None]).softmax(dim=1)[0, target]))
        for name, found in (("gone", gone), ("come", come)):
            assert found.scores[b].tolist() == pytest.approx(expected[name], abs=1e-6)
            area = sum(
                (counts[i + 1] - counts[i]) / SIDE**2 * (expected[name][i] + expected[name][i + 1]) / 2
                for i in range(steps)
            )
            assert float(found.area[b]) == pytest.approx(area, abs=1e-6)
    assert gone.scores.shape == (3, steps + 1)
    assert gone.area.shape == (3,)


@BOTH
def test_a_coarse_map_is_resized_first(curve):
    images, _ = scene(3)
    coarse = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3))
    fine = nn.functional.interpolate(coarse[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(curve(Watcher(), images, coarse, 0).scores, curve(Watcher(), images, fine, 0).scores)


@pytest.mark.parametrize("levels", [1, 2, 3, 16])
def test_each_step_alters_its_share_of_the_highest_and_keeps_what_is_altered(levels):
    """However many pixels are equal."""
    draw = torch.Generator().manual_seed(levels)
    maps = torch.randint(levels, (6, 4, 4), generator=draw) - 1.0
    for steps in (1, 3, 5, 16):
        counts = np.round(np.linspace(0, 16, steps + 1)).astype(int)
        found = deletion(bits, torch.ones(6, 1, 4, 4), maps, steps=steps)
        for b in range(6):
            removed = 1 - pixels_of(found.scores[b])
            assert removed.sum(dim=1).tolist() == counts.tolist()
            assert (removed.diff(dim=0) >= 0).all()
            for step in removed[1:-1].bool():
                assert maps[b].flatten()[step].min() >= maps[b].flatten()[~step].max()
        # What deletion removes insertion restores, ties included: together they are the whole image.
        come = insertion(bits, torch.ones(6, 1, 4, 4), maps, steps=steps, fill="black")
        assert torch.equal(found.scores + come.scores, torch.full((6, steps + 1), 2.0**16 - 1))


def test_equal_pixels_go_in_random_order():
    found = deletion(bits, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2)
    often = pixels_of(found.scores[:, 1]).float().mean(dim=0)
    assert (often - 0.5).abs().max() < 0.08  # four and a half standard errors
    same = deletion(bits, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2)
    other = deletion(bits, torch.ones(800, 1, 4, 4), torch.zeros(800, 4, 4), steps=2, seed=1)
    assert torch.equal(same.scores, found.scores)
    assert not torch.equal(other.scores, found.scores)


@pytest.mark.parametrize("fill", ["black", "mean", "blur", torch.tensor(0.25)])
def test_deletion_is_insertion_of_the_negated_map_backwards(fill):
    """Without the s highest, and with the rest of the lowest: the same image."""
    images = torch.rand(3, 2, 9, 8, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(5))
    maps = distinct(3, 9, 8)

    def linear(x):
        return (weights * x).sum(dim=(1, 2, 3))

    for steps in (1, 6, 72):
        gone = deletion(linear, images, maps, fill=fill, steps=steps)
        come = insertion(linear, images, -maps, fill=fill, steps=steps)
        torch.testing.assert_close(gone.scores, come.scores.flip(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(gone.area, come.area, atol=1e-5, rtol=0)
        torch.testing.assert_close(gone.scores[:, 0], linear(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(gone.scores[:, -1], linear(background(images, fill)), atol=1e-5, rtol=0)
    # And pixel for pixel, one by one: a linear score falls by what the pixel contributed.
    pixel = ((weights * (images - background(images, fill))).sum(dim=1)).flatten(1)
    lost = pixel.gather(1, maps.flatten(1).argsort(dim=1, descending=True))
    torch.testing.assert_close(-gone.scores.diff(dim=1), lost, atol=1e-5, rtol=0)


def test_areas_by_hand():
    shares = (0.0, 0.25, 1.0)
    scores = torch.tensor([[1.0, 0.5, 0.1], [0.3, 0.3, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.25 * 0.75 + 0.75 * 0.3, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(Curve(shares, scores).area, expected)


@BOTH
def test_the_area_of_a_constant_score_is_that_score(curve):
    images, truth = scene(3)
    for steps in (1, 7, 144):
        found = curve(lambda x: x.new_full((len(x),), 0.3), images, truth, steps=steps)
        torch.testing.assert_close(found.area, torch.full((3,), 0.3))


def test_a_map_that_knows_does_better_than_noise_and_noise_better_than_a_map_that_is_wrong():
    images, truth = scene(20)
    candidates = (truth, distinct(20), -truth)
    for fill in ("black", "mean", "blur"):
        right, none, wrong = (deletion(Watcher(), images, maps, 0, fill=fill).area.mean() for maps in candidates)
        assert right < none < wrong
        right, none, wrong = (insertion(Watcher(), images, maps, 0, fill=fill).area.mean() for maps in candidates)
        assert right > none > wrong


def test_the_usual_fills():
    images, truth = scene(2)
    assert torch.equal(
        deletion(Watcher(), images, truth, 0).scores, deletion(Watcher(), images, truth, 0, fill="black").scores
    )
    assert torch.equal(
        insertion(Watcher(), images, truth, 0).scores, insertion(Watcher(), images, truth, 0, fill="blur").scores
    )


@BOTH
def test_an_images_curve_does_not_depend_on_its_company(curve):
    images, _ = scene(5)
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(7)).float()  # full of ties
    targets = torch.tensor([0, 1, 1, 0, 1])
    seeds = [11, 12, 13, 14, 15]
    whole = curve(Watcher(), images, maps, targets, seed=seeds)
    for order in ([4, 2], [0], [3, 1, 4, 0, 2]):
        some = curve(Watcher(), images[order], maps[order], targets[order], seed=[seeds[i] for i in order])
        torch.testing.assert_close(some.scores, whole.scores[order], atol=1e-6, rtol=0)
    first = curve(Watcher(), images[:2], maps[:2], targets[:2], seed=3)
    torch.testing.assert_close(
        first.scores, curve(Watcher(), images, maps, targets, seed=3).scores[:2], atol=1e-6, rtol=0
    )
    empty = curve(Watcher(), images[:0], maps[:0], 0)
    assert empty.scores.shape == (0, 33)
    assert empty.area.shape == (0,)


@BOTH
def test_the_number_at_a_time_bounds_what_is_shown_and_does_not_matter(curve):
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(8)).float()
    images, asked = torch.ones(5, 1, 4, 4), []

    def model(x):
        asked.append(len(x))
        return bits(x)

    # Black, for "blur" leaves ones as they are.
    with Largest() as largest:
        curve(model, images, maps, steps=7, fill="black", batch_size=6)
    assert largest.numbers == 6 * 16
    asked.clear()
    whole = curve(model, images, maps, steps=7, fill="black")
    assert asked == [40]
    for size in (1, 3, 13):
        asked.clear()
        assert torch.equal(curve(model, images, maps, steps=7, fill="black", batch_size=size).scores, whole.scores)
        assert max(asked) == size
        assert sum(asked) == 40


@BOTH
def test_what_does_not_change_the_order_does_not_change_the_curve(curve):
    images, _ = scene(3)
    maps, model = distinct(3) / 50, Watcher().eval()
    plain = curve(model, images, maps, 1)
    for same in (3 * maps, maps + 7, maps.exp(), maps.double()):
        assert torch.equal(curve(model, images, same, 1).scores, plain.scores)
    shifted = curve(lambda x: model(x / 2 + 0.5), images, maps, 1, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.scores, plain.scores, atol=1e-6, rtol=0)
    scored = curve(lambda x: model(x).softmax(dim=1)[:, 1], images, maps)
    torch.testing.assert_close(scored.scores, plain.scores)


@BOTH
def test_the_model_is_left_as_it_was(curve):
    images, truth = scene(2)
    model, calls = Watcher().train(), []
    model.dropout.eval()
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    curve(model, images, truth, 0, steps=3)
    assert calls == [False]
    with pytest.raises(ZeroDivisionError):
        curve(model, images, truth, 0, preprocess=lambda x: x / (1 // 0))
    for state in (model.training, not model.dropout.training, torch.is_grad_enabled(), len(model._forward_hooks) == 1):
        assert state
    model.dropout.train()
    torch.testing.assert_close(curve(model, images, truth, 0).scores, curve(Watcher().eval(), images, truth, 0).scores)


@BOTH
def test_what_has_no_curve_is_one_sentence(curve):
    images, maps = scene(2)
    broken = maps.clone()
    broken[1, 0, 0] = torch.inf
    cases = [
        ((Watcher(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((Watcher(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((Watcher(), images, broken, 0), {}, "map 1 holds NaN or infinity: its pixels have no order"),
        ((Watcher(), images, maps.double() * 1e300, 0), {}, "map 0 holds NaN or infinity"),
        ((Watcher(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((Watcher(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((Watcher(), images, maps), {}, r"answered 64 images with \(64, 2\), expected one score"),
        ((lambda x: x.mean(dim=(1, 2, 3)), images, maps, 0), {}, r"expected \(n, K\) logits"),
        ((lambda x: Watcher()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        ((Watcher(), images, maps, 0), {"steps": 0}, "steps must lie between 1 and the 144 pixels of an image, got 0"),
        ((Watcher(), images, maps, 0), {"steps": 145}, "the 144 pixels of an image, got 145"),
        ((Watcher(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
        ((Watcher(), images, maps, 0), {"fill": "white"}, "fill is 'black', 'mean', 'blur' or a tensor"),
        ((Watcher(), images, maps, 0), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            curve(*arguments, **options)


def test_grad_cam_of_the_bundled_network_does_better_than_its_negative(model, spec):
    pixels = whycam.open_source("bundled").read(range(16)).float() / 255
    explanation = whycam.explain(model, spec.preprocess(pixels), ["layer4[-1]"], ["gradcam"])
    maps, targets = explanation.map("gradcam", "layer4[-1]"), explanation.predicted
    gone, kept, come, left = (
        curve(model, pixels, sign * maps, targets, preprocess=spec.preprocess, steps=8).area.mean()
        for curve in (deletion, insertion)
        for sign in (1, -1)
    )
    assert gone < kept
    assert come > left
