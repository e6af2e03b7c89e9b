"""Max-sensitivity: against a slow loop, its bounds and its seeds."""

from __future__ import annotations

import math

import pytest
import torch

import whycam
from whycam.errors import WhycamError
from whycam.metrics.robustness.sensitivity import max_sensitivity
from whycam.seeds import per_image

SIDE = 8


def random_images(count, seed=0):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def nonlinear_map(images):
    """A map that depends on its image, but not linearly."""
    return images.mean(dim=1) ** 2 - 0.2


def test_max_sensitivity_equals_a_slow_loop():
    images = random_images(3)
    found = max_sensitivity(nonlinear_map, images, radius=0.3, draws=4, seed=[7, 8, 9])
    assert found.dtype == torch.float64
    for b, draw in enumerate(per_image("max_sensitivity", [7, 8, 9], 3)):
        original = nonlinear_map(images[b : b + 1]).double()
        farthest = 0.0
        for _ in range(4):
            shift = 0.3 * (2 * torch.rand(3, SIDE, SIDE, generator=draw) - 1)
            moved = nonlinear_map((images[b : b + 1] + shift).clamp(0, 1)).double()
            farthest = max(farthest, math.sqrt(sum(v * v for v in (moved - original).flatten().tolist())))
        length = math.sqrt(sum(v * v for v in original.flatten().tolist()))
        assert float(found[b]) == pytest.approx(farthest / length, rel=1e-6)


def test_changes_stay_within_the_radius_and_within_the_image_range():
    images, seen = random_images(2), []

    def explain(x):
        seen.append(x)
        return nonlinear_map(x)

    max_sensitivity(explain, images, radius=0.05, draws=3)
    assert torch.equal(seen[0], images)
    assert len(seen) == 4
    for moved in seen[1:]:
        assert 0 <= moved.min() <= moved.max() <= 1
        assert 0.04 < (moved - images).abs().max() <= 0.05 + 1e-6
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[1][0] - images[0], seen[1][1] - images[1])


def test_max_sensitivity_ignores_the_unit_and_grows_with_draws_and_radius():
    images = random_images(4)
    plain = max_sensitivity(nonlinear_map, images)
    torch.testing.assert_close(max_sensitivity(lambda x: -1e-6 * nonlinear_map(x), images), plain, rtol=1e-5, atol=0)
    assert (max_sensitivity(nonlinear_map, images, draws=40) >= plain).all()
    assert (max_sensitivity(nonlinear_map, images, radius=0.04) > plain).all()
    assert max_sensitivity(lambda x: torch.ones(4, 2, 2), images).tolist() == [0, 0, 0, 0]
    # If the map is the image itself, the sensitivity is at most that of the image.
    bound = 0.02 * math.sqrt(images[0].numel()) / images.flatten(1).norm(dim=1)
    assert (max_sensitivity(lambda x: x.flatten(1)[:, None], images) <= bound).all()


def test_zero_maps_and_maps_that_are_not_finite_score_nan():
    images = random_images(4)

    def explain(x):
        maps = nonlinear_map(x)
        maps[0] = 0
        maps[1, 0, 0] = math.nan
        if not torch.equal(x, images):
            maps[2, 0, 0] = math.inf
        return maps

    assert max_sensitivity(explain, images).isnan().tolist() == [True, True, True, False]


def test_the_sensitivity_of_an_image_does_not_depend_on_its_batch():
    images, seeds = random_images(5), [11, 12, 13, 14, 15]
    whole = max_sensitivity(nonlinear_map, images, seed=seeds)
    for order in ([4, 2], [0], [3, 1, 0, 2, 4]):
        some = max_sensitivity(nonlinear_map, images[order], seed=[seeds[i] for i in order])
        torch.testing.assert_close(some, whole[order], atol=0, rtol=1e-6)
    assert max_sensitivity(nonlinear_map, images[:0]).shape == (0,)


def test_sensitivity_is_reproducible_and_leaves_the_global_generator_alone():
    images = random_images(3)
    before = torch.get_rng_state()
    first = max_sensitivity(nonlinear_map, images)
    torch.rand(5)
    assert torch.equal(max_sensitivity(nonlinear_map, images), first)
    assert not torch.equal(max_sensitivity(nonlinear_map, images, seed=1), first)
    torch.set_rng_state(before)
    max_sensitivity(nonlinear_map, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_arguments_of_max_sensitivity_are_refused():
    images = random_images(2)
    cases = [
        ((nonlinear_map, images[0]), {}, r"images must be \(B, C, H, W\)"),
        ((nonlinear_map, -images), {}, r"floats in \[0, 1\]"),
        ((lambda x: x, images), {}, r"explain answered 2 images with \(2, 3, 8, 8\)"),
        ((nonlinear_map, images), {"radius": -1}, "radius must be a number above 0, .* got -1"),
        ((nonlinear_map, images), {"radius": math.inf}, "radius must be a number above 0, .* got inf"),
        ((nonlinear_map, images), {"draws": 0}, "draws must be at least 1, got 0"),
        ((nonlinear_map, images), {"seed": [1, 2, 3]}, "3 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            max_sensitivity(*arguments, **options)


def test_on_the_bundled_network_sensitivity_grows_with_the_radius(model, spec):
    images = whycam.open_source("bundled").read(range(6)).float() / 255
    explainer = whycam.Explainer(model, "layer4[-1]", "gradcam")
    targets = explainer(spec.preprocess(images)).predicted

    def explain(x):
        return explainer(spec.preprocess(x), targets).map("gradcam", "layer4[-1]")

    little, more, much = (
        max_sensitivity(explain, images, radius=radius, draws=3).mean() for radius in (0.005, 0.02, 0.1)
    )
    assert 0 < little < more < much
