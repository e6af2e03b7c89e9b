"""ROAD: the imputation against a dense solve of the paper's definition, the ranking, and what the score must obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from watcher import SIDE, Watcher, scene

from whycam.errors import WhycamError
from whycam.metrics import bootstrap_interval, noisy_linear_imputation, road
from whycam.metrics.faithfulness.ranking import ranks, removed_counts, removed_pixels


def solved(image, removed):
    """One channel (H, W); of each removed pixel: itself = Σ weight · neighbor / Σ weight of those that exist."""
    places = [tuple(p) for p in np.argwhere(removed)]
    number = {place: i for i, place in enumerate(places)}
    matrix, right = np.eye(len(places)), np.zeros(len(places))
    for (row, column), i in number.items():
        around = {
            (row + down, column + across): 1 / 6 if 0 in (down, across) else 1 / 12
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            if (down, across) != (0, 0) and 0 <= row + down < image.shape[0] and 0 <= column + across < image.shape[1]
        }
        for place, weight in around.items():
            share = weight / sum(around.values())
            if place in number:
                matrix[i, number[place]] -= share
            else:
                right[i] += share * image[place]
    out = image.copy()
    if places:
        out[tuple(np.array(places).T)] = np.linalg.solve(matrix, right)
    return out


def textures(count, side=SIDE, channels=3, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def blobs(count, side, share, seed=1):
    """Removed pixels in patches, as a coarse map removes them."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0]
    return fine <= fine.flatten(1).quantile(share, dim=1)[:, None, None]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_filled_pixels_solve_the_papers_equations(share):
    images = torch.rand(4, 2, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    removed = torch.rand(4, 9, 13, generator=torch.Generator().manual_seed(3)) < share
    removed[:, 0, 0] = removed[1, -1] = removed[2, :, -1] = True  # corners and whole edges
    removed[:, 4, 6] = False
    filled = noisy_linear_imputation(images.masked_fill(removed[:, None], torch.nan), removed)
    for b in range(4):
        for c in range(2):
            expected = solved(images[b, c].numpy(), removed[b].numpy())
            np.testing.assert_allclose(filled[b, c].numpy(), expected, atol=1e-7)
    assert torch.equal(filled[~removed[:, None].expand_as(filled)], images[~removed[:, None].expand_as(images)])


def test_an_image_of_usual_size_converges():
    images, removed = textures(2, 224, 1), torch.cat([blobs(1, 224, 0.9), torch.rand(1, 224, 224) < 0.9])
    filled = noisy_linear_imputation(images.double(), removed)
    kernel = filled.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]).div(12)[None, None]
    weights = nn.functional.conv2d(torch.ones_like(filled), kernel, padding=1)
    around = nn.functional.conv2d(filled, kernel, padding=1) / weights
    assert (filled - around)[removed[:, None]].abs().max() < 1e-6
    known = images[~removed[:, None]]
    # A weighted mean of known pixels in the end: nothing lies beyond them.
    assert known.min() - 1e-6 <= filled.min() <= filled.max() <= known.max() + 1e-6


def test_what_is_linear_comes_back():
    """Inside, where neighbors lie on all sides; what is constant comes back at the borders as well."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = (0.1 + 0.02 * y - 0.01 * x).double()[None, None]
    inside = torch.zeros(1, 20, 30, dtype=torch.bool)
    inside[:, 3:-2, 1:-6] = True
    torch.testing.assert_close(noisy_linear_imputation(ramp, inside), ramp, atol=1e-7, rtol=0)
    removed = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)) < 0.9
    flat = torch.full_like(ramp, 0.3)
    torch.testing.assert_close(noisy_linear_imputation(flat, removed), flat, atol=1e-7, rtol=0)


def test_a_batch_is_its_images_and_its_turned_images():
    images, removed = textures(5).double(), blobs(5, SIDE, 0.6)
    removed[4] = False  # nothing to do for one of them
    whole = noisy_linear_imputation(images, removed)
    for b in range(5):
        torch.testing.assert_close(
            whole[b : b + 1], noisy_linear_imputation(images[b : b + 1], removed[b : b + 1]), atol=1e-7, rtol=0
        )
    turned = noisy_linear_imputation(images.rot90(1, (2, 3)), removed.rot90(1, (1, 2))).rot90(-1, (2, 3))
    torch.testing.assert_close(whole, turned, atol=1e-7, rtol=0)
    assert noisy_linear_imputation(images.float(), removed).dtype == torch.float32


def test_what_cannot_be_filled_in_is_refused():
    images, removed = textures(3), torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    removed[2] = True
    with pytest.raises(WhycamError, match="image 2 has no pixel left to fill the others in from: remove fewer"):
        noisy_linear_imputation(images, removed)
    with pytest.raises(WhycamError, match=r"\(B, H, W\) bool, got \(3, 3, 12, 12\) and \(2, 12, 12\) bool"):
        noisy_linear_imputation(images, removed[:2])
    with pytest.raises(WhycamError, match="NaN or infinity"):
        noisy_linear_imputation(images / 0, blobs(3, SIDE, 0.5))
    with pytest.raises(WhycamError, match=r"did not converge in \d+ iterations .*allow a larger tolerance"):
        noisy_linear_imputation(textures(1, 64), blobs(1, 64, 0.9), tolerance=0)


@pytest.mark.parametrize("zeros", [0.0, 0.375, 1.0])
def test_exactly_the_share_goes_however_many_pixels_are_equal(zeros, generator):
    maps = torch.rand(6, 16, 16, generator=generator) + 0.1
    maps.view(6, -1)[:, : int(zeros * 256)] = 0
    counts = removed_counts((10, 20, 30, 50, 90), 256)
    assert counts == [26, 51, 77, 128, 230]
    ranked = ranks(maps, torch.rand(6, 16, 16, generator=generator))
    assert torch.equal(ranked.flatten(1).sort(dim=1).values, torch.arange(256).expand(6, -1))
    removed = removed_pixels(ranked, counts)
    assert removed.shape == (6, 2, 5, 16, 16)
    assert torch.equal(removed.flatten(3).sum(dim=3), torch.tensor(counts).expand(6, 2, -1))
    for image in range(6):
        for place, count in enumerate(counts):
            most, least = removed[image, :, place]
            assert maps[image][most].min() >= maps[image][~most].max()
            assert maps[image][least].max() <= maps[image][~least].min()
            if count < 128:
                assert not (most & least).any()
    # Where all are equal, no place is preferred: over many draws each goes equally often.
    often = removed_pixels(ranks(torch.zeros(400, 4, 4), torch.rand(400, 4, 4, generator=generator)), [8])[:, 0, 0]
    assert (often.float().mean(dim=0) - 0.5).abs().max() < 0.12


def test_a_map_and_its_negative_rank_in_opposite_order(generator):
    maps = torch.randint(4, (5, 8, 8), generator=generator).float()  # full of ties
    ties = torch.rand(5, 8, 8, generator=generator)
    assert torch.equal(ranks(-maps, -ties), 63 - ranks(maps, ties))


def test_a_map_that_knows_scores_far_above_noise_and_a_map_that_is_wrong_below():
    images, truth = scene(30)
    noise = torch.randn(30, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    right, wrong, none = (road(Watcher(), images, maps, 0).combined for maps in (truth, -truth, noise))
    low, high = bootstrap_interval(none)
    assert low < 0 < high
    assert bootstrap_interval(right)[0] > 3 * high > 0
    assert bootstrap_interval(wrong)[1] < 3 * low < 0


def test_the_scores_are_those_of_a_slow_loop():
    images, _ = scene(3)
    model, maps = Watcher().eval(), torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))
    found = road(model, images, maps, [0, 1, 0], percentiles=(15, 60), noise=0)
    full = nn.functional.interpolate(maps[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    for b, target in enumerate((0, 1, 0)):
        order = np.argsort(full[b].numpy().ravel())
        for p, count in enumerate((22, 86)):
            for name, gone in (("morf", order[-count:]), ("lerf", order[:count])):
                removed = np.zeros(SIDE * SIDE, bool)
                removed[gone] = True
                filled = [solved(channel.double().numpy(), removed.reshape(SIDE, SIDE)) for channel in images[b]]
                logits = model(torch.from_numpy(np.stack(filled))[None].float())
                expected = float(logits.softmax(1)[0, target])
                assert float(getattr(found, name)[b, p]) == pytest.approx(expected, abs=2e-5)
    expected = (found.lerf.mean(dim=1) - found.morf.mean(dim=1)) / 2
    assert torch.equal(found.combined, expected)
    assert found.percentiles == (15, 60)


def test_what_does_not_change_the_order_does_not_change_the_score():
    images, _ = scene(4)
    maps = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    model = Watcher().train()
    plain = road(model, images, maps, 0)
    assert model.training
    assert model.dropout.training  # it was left as it was, and yet did not drop anything:
    assert torch.equal(plain.morf, road(Watcher().eval(), images, maps, 0).morf)
    for same in (3 * maps, maps + 7, maps.exp()):
        assert torch.equal(road(model, images, same, 0).morf, plain.morf)
    opposite = road(model, images, -maps, 0)
    assert torch.equal(opposite.morf, plain.lerf)
    assert torch.equal(opposite.combined, -plain.combined)
    # Normalization belongs to the model: taken out of it, it is given as preprocess.
    shifted = road(lambda x: Watcher().eval()(x / 2 + 0.5), images, maps, 0, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.lerf, plain.lerf, atol=1e-5, rtol=0)
    # A function that gives scores itself.
    scored = road(lambda x: Watcher().eval()(x).softmax(dim=1)[:, 0], images, maps)
    torch.testing.assert_close(scored.lerf, plain.lerf)


def test_an_images_score_does_not_depend_on_its_company():
    images, _ = scene(5)
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(7)).float()
    whole = road(Watcher(), images, maps, 0, seed=[11, 12, 13, 14, 15])
    for order in ([4, 2], [0]):
        some = road(Watcher(), images[order], maps[order], 0, seed=[11 + i for i in order], batch_size=1)
        torch.testing.assert_close(some.morf, whole.morf[order], atol=1e-5, rtol=0)
    assert not torch.equal(road(Watcher(), images, maps, 0, seed=1).morf, whole.morf)
    assert road(Watcher(), images[:0], maps[:0], 0).combined.shape == (0,)


def test_what_road_cannot_score_is_one_sentence():
    images, maps = scene(2)
    broken = maps.clone()
    broken[1, 0, 0] = torch.nan
    cases = [
        ((Watcher(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((Watcher(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((Watcher(), images, broken, 0), {}, "map 1 holds NaN or infinity: its pixels have no order"),
        ((Watcher(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((Watcher(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((Watcher(), images, maps), {}, r"answered 12 images with \(12, 2\), expected one score"),
        ((lambda x: x.mean(dim=(1, 2, 3)), images, maps, 0), {}, r"expected \(n, K\) logits"),
        ((lambda x: Watcher()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        ((Watcher(), images, maps, 0), {"percentiles": ()}, "no percentile is given"),
        ((Watcher(), images, maps, 0), {"percentiles": (100,)}, "percentile 100 of 144 pixels removes everything"),
        ((Watcher(), images, maps, 0), {"percentiles": (0.1,)}, "percentile 0.1 of 144 pixels removes nothing"),
        ((Watcher(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            road(*arguments, **options)


def test_bootstrap_intervals(generator):
    values = torch.randn(400, generator=generator).double()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)
    assert bootstrap_interval(3 * values - 1) == pytest.approx((3 * low - 1, 3 * high - 1))
    assert bootstrap_interval(values, level=0.5)[0] > low
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.full((5,), 0.25)) == (0.25, 0.25)
