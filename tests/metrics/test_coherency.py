"""Coherency against its definition and at both of its ends, and the scores that are made of it."""

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


def textures(count, seed=0):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def coarse(images):
    """A signed map of a third of the size that looks at the image."""
    return nn.functional.avg_pool2d(images.mean(dim=1), 3) - 0.45


def test_it_is_that_of_a_slow_loop():
    images = textures(4)
    found = coherency(coarse, images, coarse(images))
    assert found.dtype == torch.float64
    for b in range(4):
        image = images[b : b + 1]
        heat = heatmaps(coarse(image), (SIDE, SIDE))
        again = heatmaps(coarse(image * heat[:, None]), (SIDE, SIDE))
        x, y = heat.double().flatten().tolist(), again.double().flatten().tolist()
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        above = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
        below = math.sqrt(sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y))
        assert float(found[b]) == pytest.approx((above / below + 1) / 2, abs=1e-7)


def test_both_ends_and_the_middle():
    images = textures(3)
    fixed = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    close = {"atol": 1e-12, "rtol": 0}
    same = coherency(lambda x: 5 * fixed, images, fixed)  # its own unit does not count
    torch.testing.assert_close(same, torch.ones(3).double(), **close)
    shown = heatmaps(fixed, (SIDE, SIDE))
    torch.testing.assert_close(
        coherency(lambda x: 1 - shown, images, shown), torch.zeros(3).double(), atol=1e-6, rtol=0
    )
    # Undefined: nothing shown, the same everywhere, or not finite.
    undefined = fixed.clone()
    undefined[0], undefined[1], undefined[2, 1, 1] = -1, 3, math.nan
    assert coherency(lambda x: undefined, images, fixed).tolist() == [0.5, 0.5, 0.5]
    assert coherency(lambda x: fixed, images, torch.zeros(3, 4, 4)).tolist() == [0.5, 0.5, 0.5]


def test_what_is_explained_again_is_the_darkened_image():
    """In [0, 1] also where resizing lifts a heatmap just above 1, which a preprocessing would refuse."""
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


def test_an_images_score_does_not_depend_on_its_company_nor_its_maps_on_their_unit():
    images = textures(5).double()
    maps = coarse(images)
    whole = coherency(coarse, images, maps)
    torch.testing.assert_close(coherency(coarse, images, 100 * maps), whole, atol=1e-12, rtol=0)
    for order in ([4, 2, 0], [3]):
        torch.testing.assert_close(coherency(coarse, images[order], maps[order]), whole[order], atol=1e-12, rtol=0)
    assert coherency(coarse, images[:0], maps[:0]).shape == (0,)
    graph = maps.clone().requires_grad_()
    assert not coherency(lambda x: graph, images, graph).requires_grad


def test_what_is_no_explanation_is_one_sentence():
    images = textures(2)
    maps = coarse(images)
    broken = maps.clone()
    broken[1, 0, 0] = math.inf
    cases = [
        ((coarse, images, maps[:1]), r"one for each image, got \(2, 3, 12, 12\) and \(1, 4, 4\)"),
        ((coarse, 3 * images, maps), r"floats in \[0, 1\]"),
        ((coarse, images, broken), "map 1 holds NaN or infinity"),
        ((lambda x: x, images, maps), r"explain answered 2 images with \(2, 3, 12, 12\), expected \(n, h, w\) maps"),
        ((lambda x: maps[:1], images, maps), r"explain answered 2 images with \(1, 4, 4\)"),
        ((lambda x: maps[:, :0], images, maps), r"explain answered 2 images with \(2, 0, 4\)"),
        ((lambda x: [1, 2], images, maps), "explain answered 2 images with list"),
    ]
    for arguments, message in cases:
        with pytest.raises(WhycamError, match=message):
            coherency(*arguments)


def test_the_means_are_harmonic_image_by_image(generator):
    drop, shown, alike = torch.rand(3, 20, generator=generator).double()
    combined = torch.rand(20, generator=generator).double() - 0.5
    for b in range(20):
        d, c, h, r = float(drop[b]), float(shown[b]), float(alike[b]), float(combined[b])
        expected = 3 / (1 / h + 1 / (1 - c) + 1 / (1 - d))
        assert float(adcc(drop, shown, alike)[b]) == pytest.approx(expected, abs=1e-14)
        expected = 3 / (1 / h + 1 / (1 - c) + 1 / (2 * r)) if r > 0 else 0
        assert float(arcc(combined, shown, alike)[b]) == pytest.approx(expected, abs=1e-14)
    assert 0 < int((arcc(combined, shown, alike) == 0).sum()) < 20  # ROAD below 0 counts as 0
    # A third of the numbers is never above their harmonic mean, nor this above three times the least.
    least = torch.stack([1 - drop, 1 - shown, alike]).amin(dim=0)
    assert ((adcc(drop, shown, alike) >= least) & (adcc(drop, shown, alike) <= 3 * least)).all()
    assert torch.equal(adcc(drop.float(), shown, alike).isfinite(), torch.ones(20, dtype=torch.bool))


def test_a_part_of_zero_leaves_nothing_and_perfection_is_one():
    nothing, all_of_it, half = (torch.tensor([value]) for value in (0.0, 1.0, 0.5))
    assert adcc(nothing, nothing, all_of_it).tolist() == [1]
    assert arcc(half, nothing, all_of_it).tolist() == [1]
    for parts in ((all_of_it, half, half), (half, all_of_it, half), (half, half, nothing)):
        assert adcc(*parts).tolist() == [0]
    assert arcc(nothing, half, half).tolist() == arcc(-half, half, half).tolist() == [0]
    assert adcc(half * math.nan, half, half).isnan().all()
    # What rounding puts outside is put back.
    assert adcc(all_of_it + 1e-7, half, half).tolist() == [0]
    assert adcc(nothing, nothing, all_of_it + 1e-7).tolist() == [1]
    assert adcc(half[:0], half[:0], half[:0]).shape == (0,)


def test_parts_that_are_none_are_one_sentence():
    half = torch.full((2,), 0.5)
    with pytest.raises(WhycamError, match=r"\(B,\) each, got drop \(2,\), complexity \(1,\), coherency \(2,\)"):
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


def test_grad_cam_of_the_bundled_network_finds_itself_again_better_than_noise(model, spec):
    images = whycam.open_source("bundled").read(range(16)).float() / 255
    explainer = whycam.Explainer(model, "layer4[-1]", "gradcam")
    first = explainer(spec.preprocess(images))
    targets = first.predicted

    def explain(x):
        return explainer(spec.preprocess(x), targets).map("gradcam", "layer4[-1]")

    maps = first.map("gradcam", "layer4[-1]")
    alike = coherency(explain, images, maps)
    assert ((alike >= 0) & (alike <= 1)).all()
    # A map that knows nothing of the image: its darkened image is explained elsewhere.
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    assert alike.mean() > coherency(explain, images, noise).mean()
    whole = arcc(torch.full((16,), 0.2), complexity(heatmaps(maps, (32, 32))), alike)
    assert ((whole >= 0) & (whole <= 1)).all()
