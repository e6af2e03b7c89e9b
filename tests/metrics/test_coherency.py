"""Coherency: against its definition and at both ends of its scale; ADCC and ARCC."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import whycam
from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.map_complexity import complexity
from whycam.metrics.robustness.coherency import adcc, arcc, coherency

SIDE = 12


def random_images(count, seed=0):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def coarse_map(images):
    """A signed map that depends on the image, at a third of its size."""
    return nn.functional.avg_pool2d(images.mean(dim=1), 3) - 0.45


def test_coherency_equals_a_slow_loop():
    images = random_images(4)
    found = coherency(coarse_map, images, coarse_map(images))
    assert found.dtype == torch.float64
    for b in range(4):
        image = images[b : b + 1]
        heat = heatmaps(coarse_map(image), (SIDE, SIDE))
        again = heatmaps(coarse_map(image * heat[:, None]), (SIDE, SIDE))
        x, y = heat.double().flatten().tolist(), again.double().flatten().tolist()
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        above = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
        below = math.sqrt(sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y))
        assert float(found[b]) == pytest.approx((above / below + 1) / 2, abs=1e-7)


def test_the_scores_of_equal_opposite_and_undefined_maps():
    images = random_images(3)
    fixed = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    close = {"atol": 1e-12, "rtol": 0}
    same = coherency(lambda x: 5 * fixed, images, fixed)  # the unit of a map does not matter
    torch.testing.assert_close(same, torch.ones(3).double(), **close)
    shown = heatmaps(fixed, (SIDE, SIDE))
    torch.testing.assert_close(
        coherency(lambda x: 1 - shown, images, shown), torch.zeros(3).double(), atol=1e-6, rtol=0
    )
    # Undefined: zero, constant or not finite.
    undefined = fixed.clone()
    undefined[0], undefined[1], undefined[2, 1, 1] = -1, 3, math.nan
    assert coherency(lambda x: undefined, images, fixed).tolist() == [0.5, 0.5, 0.5]
    assert coherency(lambda x: fixed, images, torch.zeros(3, 4, 4)).tolist() == [0.5, 0.5, 0.5]


def test_the_masked_image_is_explained_again():
    """It stays in [0, 1] even where resizing lifts a heatmap above 1 by rounding; preprocessing would refuse that."""
    images, seen = torch.ones(2, 3, 33, 33), []
    maps = torch.ones(2, 4, 4)
    maps[1, :, 2:] = -1

    def explain(x):
        seen.append(x)
        return maps

    coherency(explain, images, maps)
    assert len(seen) == 1
    assert seen[0].max() == 1
    assert (seen[0][1, :, :, 26:] == 0).all()
    torch.testing.assert_close(seen[0], heatmaps(maps, (33, 33))[:, None].expand_as(images), atol=1e-6, rtol=0)


def test_a_score_does_not_depend_on_the_batch_or_the_unit_of_maps():
    images = random_images(5).double()
    maps = coarse_map(images)
    whole = coherency(coarse_map, images, maps)
    torch.testing.assert_close(coherency(coarse_map, images, 100 * maps), whole, atol=1e-12, rtol=0)
    for order in ([4, 2, 0], [3]):
        torch.testing.assert_close(coherency(coarse_map, images[order], maps[order]), whole[order], atol=1e-12, rtol=0)
    assert coherency(coarse_map, images[:0], maps[:0]).shape == (0,)
    graph = maps.clone().requires_grad_()
    assert not coherency(lambda x: graph, images, graph).requires_grad


def test_wrong_arguments_are_refused():
    images = random_images(2)
    maps = coarse_map(images)
    broken = maps.clone()
    broken[1, 0, 0] = math.inf
    cases = [
        ((coarse_map, images, maps[:1]), r"one for each image, got \(2, 3, 12, 12\) and \(1, 4, 4\)"),
        ((coarse_map, 3 * images, maps), r"floats in \[0, 1\]"),
        ((coarse_map, images, broken), "map 1 holds NaN or infinity"),
        ((lambda x: x, images, maps), r"explain answered 2 images with \(2, 3, 12, 12\), expected \(n, h, w\) maps"),
        ((lambda x: maps[:1], images, maps), r"explain answered 2 images with \(1, 4, 4\)"),
        ((lambda x: maps[:, :0], images, maps), r"explain answered 2 images with \(2, 0, 4\)"),
        ((lambda x: [1, 2], images, maps), "explain answered 2 images with list"),
    ]
    for arguments, message in cases:
        with pytest.raises(WhycamError, match=message):
            coherency(*arguments)


def test_adcc_and_arcc_are_harmonic_means_per_image(generator):
    drop, shown, similar = torch.rand(3, 20, generator=generator).double()
    combined = torch.rand(20, generator=generator).double() - 0.5
    for b in range(20):
        d, c, h, r = float(drop[b]), float(shown[b]), float(similar[b]), float(combined[b])
        expected = 3 / (1 / h + 1 / (1 - c) + 1 / (1 - d))
        assert float(adcc(drop, shown, similar)[b]) == pytest.approx(expected, abs=1e-14)
        expected = 3 / (1 / h + 1 / (1 - c) + 1 / (2 * r)) if r > 0 else 0
        assert float(arcc(combined, shown, similar)[b]) == pytest.approx(expected, abs=1e-14)
    assert 0 < int((arcc(combined, shown, similar) == 0).sum()) < 20  # ROAD below 0 counts as 0
    # A third of the numbers is never above their harmonic mean, nor this above three times the least.
    least = torch.stack([1 - drop, 1 - shown, similar]).amin(dim=0)
    assert ((adcc(drop, shown, similar) >= least) & (adcc(drop, shown, similar) <= 3 * least)).all()
    assert torch.equal(adcc(drop.float(), shown, similar).isfinite(), torch.ones(20, dtype=torch.bool))


def test_a_part_of_zero_leaves_nothing_and_perfection_is_one():
    nothing, all_of_it, half = (torch.tensor([value]) for value in (0.0, 1.0, 0.5))
    assert adcc(nothing, nothing, all_of_it).tolist() == [1]
    assert arcc(half, nothing, all_of_it).tolist() == [1]
    for parts in ((all_of_it, half, half), (half, all_of_it, half), (half, half, nothing)):
        assert adcc(*parts).tolist() == [0]
    assert arcc(nothing, half, half).tolist() == arcc(-half, half, half).tolist() == [0]
    assert adcc(half * math.nan, half, half).isnan().all()
    # Values outside [0, 1] by rounding are clipped.
    assert adcc(all_of_it + 1e-7, half, half).tolist() == [0]
    assert adcc(nothing, nothing, all_of_it + 1e-7).tolist() == [1]
    assert adcc(half[:0], half[:0], half[:0]).shape == (0,)


def test_wrong_parts_of_adcc_and_arcc_are_refused():
    half = torch.full((2,), 0.5)
    with pytest.raises(
        WhycamError, match=r"one number per image, got drop \(2,\), complexity \(1,\), coherency \(2,\)"
    ):
        adcc(half, half[:1], half)
    with pytest.raises(WhycamError, match=r"got road_combined \(\), complexity \(\), coherency \(\)"):
        arcc(half[0], half[0], half[0])
    with pytest.raises(WhycamError, match="drop must lie between 0 and 1, got 20"):
        adcc(torch.tensor([0.5, 20]), half, half)
    with pytest.raises(WhycamError, match=r"complexity must lie between 0 and 1, got -0.1"):
        arcc(half, torch.tensor([0.5, -0.1]), half)
    with pytest.raises(WhycamError, match=r"coherency must lie between 0 and 1, got 1.5"):
        adcc(half, half, half + 1)
    with pytest.raises(WhycamError, match=r"road_combined must lie between -0.5 and 0.5, got 0.75"):
        arcc(half + 0.25, half, half)


def test_on_the_bundled_network_grad_cam_is_more_coherent_than_noise(model, spec):
    images = whycam.open_source("bundled").read(range(16)).float() / 255
    explainer = whycam.Explainer(model, "layer4[-1]", "gradcam")
    first = explainer(spec.preprocess(images))
    targets = first.predicted

    def explain(x):
        return explainer(spec.preprocess(x), targets).map("gradcam", "layer4[-1]")

    maps = first.map("gradcam", "layer4[-1]")
    similar = coherency(explain, images, maps)
    assert ((similar >= 0) & (similar <= 1)).all()
    # A noise map does not depend on the image, so the masked image is explained elsewhere.
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    assert similar.mean() > coherency(explain, images, noise).mean()
    whole = arcc(torch.full((16,), 0.2), complexity(heatmaps(maps, (32, 32))), similar)
    assert ((whole >= 0) & (whole <= 1)).all()
