"""What noise says about maps: against loops over the definitions, linear scores that are foretold, and seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import whycam
from whycam.errors import WhycamError
from whycam.metrics.robustness.sensitivity import infidelity, max_sensitivity
from whycam.seeds import per_image

SIDE = 8


def textures(count, channels=3, seed=0):
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def noise_maps(count, seed=5):
    return torch.randn(count, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def bent(images):
    """A map that moves with its image, and not in proportion."""
    return images.mean(dim=1) ** 2 - 0.2


class Watcher(nn.Module):
    """Its first class speaks for light in a square, the second for light elsewhere."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        x = self.dropout(x)
        square = x[:, :, 2:5, 3:6].mean(dim=(1, 2, 3))
        return torch.stack([6 * square, 4 * x.mean(dim=(1, 2, 3))], dim=1)


def linear(channels, seed=3):
    """A score Σ w x with the same weights for every channel, and those weights."""
    weights = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x * weights).sum(dim=(1, 2, 3)) / channels, weights


def test_max_sensitivity_is_that_of_a_slow_loop():
    images = textures(3)
    found = max_sensitivity(bent, images, radius=0.3, draws=4, seed=[7, 8, 9])
    assert found.dtype == torch.float64
    for b, draw in enumerate(per_image("max_sensitivity", [7, 8, 9], 3)):
        still = bent(images[b : b + 1]).double()
        farthest = 0.0
        for _ in range(4):
            shift = 0.3 * (2 * torch.rand(3, SIDE, SIDE, generator=draw) - 1)
            moved = bent((images[b : b + 1] + shift).clamp(0, 1)).double()
            farthest = max(farthest, math.sqrt(sum(v * v for v in (moved - still).flatten().tolist())))
        length = math.sqrt(sum(v * v for v in still.flatten().tolist()))
        assert float(found[b]) == pytest.approx(farthest / length, rel=1e-6)


def test_only_small_changes_are_made_and_none_leaves_the_image():
    images, seen = textures(2), []

    def explain(x):
        seen.append(x)
        return bent(x)

    max_sensitivity(explain, images, radius=0.05, draws=3)
    assert torch.equal(seen[0], images)
    assert len(seen) == 4
    for moved in seen[1:]:
        assert 0 <= moved.min() <= moved.max() <= 1
        assert 0.04 < (moved - images).abs().max() <= 0.05 + 1e-6
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[1][0] - images[0], seen[1][1] - images[1])


def test_what_max_sensitivity_must_obey():
    images = textures(4)
    plain = max_sensitivity(bent, images)
    # The map's unit does not count; more draws, or a larger radius, find no less.
    torch.testing.assert_close(max_sensitivity(lambda x: -1e-6 * bent(x), images), plain, rtol=1e-5, atol=0)
    assert (max_sensitivity(bent, images, draws=40) >= plain).all()
    assert (max_sensitivity(bent, images, radius=0.04) > plain).all()
    assert max_sensitivity(lambda x: torch.ones(4, 2, 2), images).tolist() == [0, 0, 0, 0]
    # For a map in proportion to the image it is no more than the noise in proportion to the image.
    bound = 0.02 * math.sqrt(images[0].numel()) / images.flatten(1).norm(dim=1)
    assert (max_sensitivity(lambda x: x.flatten(1)[:, None], images) <= bound).all()


def test_what_has_no_length_has_no_sensitivity():
    images = textures(4)

    def explain(x):
        maps = bent(x)
        maps[0] = 0
        maps[1, 0, 0] = math.nan
        if not torch.equal(x, images):
            maps[2, 0, 0] = math.inf
        return maps

    assert max_sensitivity(explain, images).isnan().tolist() == [True, True, True, False]


def forecast(score, image, full, draw, draws, noise):
    """(error, share) of one image: Σ over every value of I times Φ / C, the best factor, and the mean squared error."""
    said, change = [], []
    for _ in range(draws):
        altered = (image - noise * torch.randn(image.shape, generator=draw)).clamp(0, 1)
        taken = (image.double() - altered.double()).tolist()
        said.append(
            sum(taken[c][i][j] * full[i][j] / len(taken) for c in range(len(taken)) for i in range(SIDE)
                for j in range(SIDE))
        )  # fmt: skip
        change.append(float(score(image[None])[0]) - float(score(altered[None])[0]))
    factor = sum(a * d for a, d in zip(said, change, strict=True)) / sum(a * a for a in said)
    error = sum((factor * a - d) ** 2 for a, d in zip(said, change, strict=True)) / draws
    return error, error / (sum(d * d for d in change) / draws)


def test_infidelity_is_that_of_a_slow_loop():
    images, model = textures(3), Watcher().eval()
    maps = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))
    full = nn.functional.interpolate(maps[:, None].double(), (SIDE, SIDE), mode="bilinear")[:, 0].tolist()
    targets = [0, 1, 0]
    found = infidelity(model, images, maps, targets, draws=12, noise=0.3, seed=[4, 5, 6])
    assert found.error.dtype == found.unexplained.dtype == torch.float64
    for b, draw in enumerate(per_image("infidelity", [4, 5, 6], 3)):
        error, share = forecast(lambda x, b=b: model(x).softmax(1)[:, targets[b]], images[b], full[b], draw, 12, 0.3)
        assert float(found.error[b]) == pytest.approx(error, rel=1e-4)
        assert float(found.unexplained[b]) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_weights_of_a_linear_score_foretell_it(channels):
    """Also where the noise was cut off, for what counts is what was really taken."""
    images, (score, weights) = textures(5, channels), linear(channels)
    right = infidelity(score, images, weights.expand(5, -1, -1), noise=0.5)
    assert right.error.max() < 1e-10
    assert right.unexplained.max() < 1e-10
    # In any unit. Its negative foretells as much, by a factor below 0.
    for unit in (1e-30, 7.0, -1.0, 1e30):
        assert infidelity(score, images, unit * weights.double().expand(5, -1, -1)).unexplained.max() < 1e-10
    # Noise added to the weights costs what it is worth: its share of the squared length.
    added = noise_maps(5)
    mixed = infidelity(score, images, weights + added, draws=600).unexplained
    assert (mixed - 0.5).abs().max() < 0.2
    assert (infidelity(score, images, weights + 0.1 * added).unexplained < mixed / 10).all()


def test_a_map_that_knows_nothing_leaves_all_but_what_the_factor_takes():
    images, (score, weights) = textures(60, 1), linear(1)
    blind = noise_maps(60)
    blind -= (blind * weights).sum(dim=(1, 2), keepdim=True) / weights.square().sum() * weights
    for draws in (4, 64):
        share = infidelity(score, images, blind, draws=draws).unexplained
        spread = share.std() / math.sqrt(60)
        assert abs(float(share.mean()) - (1 - 1 / draws)) < 4 * float(spread)
        assert share.max() <= 1
    # Zeros foretell no change at all, and so miss all of it.
    none = infidelity(score, images, torch.zeros(60, 2, 2))
    assert none.unexplained.tolist() == [1] * 60
    assert (none.error > infidelity(score, images, blind).error).all()
    # What never changes cannot be foretold wrong.
    still = infidelity(lambda x: x.new_ones(len(x)), images, blind)
    assert still.error.tolist() == [0] * 60
    assert still.unexplained.isnan().all()


def test_what_does_not_change_the_question_does_not_change_infidelity():
    images, maps, model = textures(4), noise_maps(4), Watcher().train()
    plain = infidelity(model, images, maps, 0)
    assert model.training
    assert model.dropout.training
    close = {"atol": 1e-9, "rtol": 1e-4}
    for same in (3 * maps, -maps, 1e-12 * maps.double()):
        torch.testing.assert_close(infidelity(model, images, same, 0).unexplained, plain.unexplained, **close)
        torch.testing.assert_close(infidelity(model, images, same, 0).error, plain.error, **close)
    shifted = infidelity(lambda x: Watcher().eval()(x / 2 + 0.5), images, maps, 0, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.error, plain.error, **close)
    scored = infidelity(lambda x: Watcher().eval()(x).softmax(dim=1)[:, 0], images, maps)
    torch.testing.assert_close(scored.error, plain.error, **close)
    for batch_size in (1, 50, 1000):
        again = infidelity(model, images, maps, 0, batch_size=batch_size)
        torch.testing.assert_close(again.error, plain.error, **close)


def test_an_images_score_does_not_depend_on_its_company():
    images, maps, seeds = textures(5), noise_maps(5), [11, 12, 13, 14, 15]
    close = {"atol": 1e-9, "rtol": 1e-4}
    whole = infidelity(Watcher(), images, maps, [0, 1, 0, 1, 0], seed=seeds, draws=20)
    moved = max_sensitivity(bent, images, seed=seeds)
    for order in ([4, 2], [0], [3, 1, 0, 2, 4]):
        own = [seeds[i] for i in order]
        targets = [[0, 1, 0, 1, 0][i] for i in order]
        some = infidelity(Watcher(), images[order], maps[order], targets, seed=own, draws=20, batch_size=7)
        torch.testing.assert_close(some.error, whole.error[order], **close)
        torch.testing.assert_close(some.unexplained, whole.unexplained[order], **close)
        torch.testing.assert_close(max_sensitivity(bent, images[order], seed=own), moved[order], atol=0, rtol=1e-6)
    none = infidelity(Watcher(), images[:0], maps[:0], 0)
    assert none.error.shape == none.unexplained.shape == max_sensitivity(bent, images[:0]).shape == (0,)


def test_seeds_repeat_and_the_global_generator_is_left_alone():
    images, maps = textures(3), noise_maps(3)
    before = torch.get_rng_state()
    first, moved = infidelity(Watcher(), images, maps, 0), max_sensitivity(bent, images)
    torch.rand(5)
    assert torch.equal(infidelity(Watcher(), images, maps, 0).error, first.error)
    assert torch.equal(max_sensitivity(bent, images), moved)
    assert not torch.equal(infidelity(Watcher(), images, maps, 0, seed=1).error, first.error)
    assert not torch.equal(max_sensitivity(bent, images, seed=1), moved)
    torch.set_rng_state(before)
    infidelity(Watcher(), images, maps, 0)
    max_sensitivity(bent, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_measured_is_one_sentence():
    images, maps = textures(2), noise_maps(2)
    broken = maps.clone()
    broken[1, 0, 0] = math.nan
    cases = [
        ((Watcher(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 8, 8\) and \(1, 8, 8\)"),
        ((Watcher(), 3 * images, maps, 0), {}, r"floats in \[0, 1\]"),
        ((Watcher(), images, broken, 0), {}, "map 1 holds NaN or infinity"),
        ((Watcher(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((Watcher(), images, maps), {}, r"answered 2 images with \(2, 2\), expected one score"),
        ((Watcher(), images, maps, 0), {"draws": 1}, "draws must be at least 2, got 1: .* foretold by any map, scaled"),
        ((Watcher(), images, maps, 0), {"noise": 0}, r"noise must be a number above 0, for images in \[0, 1\], got 0"),
        ((Watcher(), images, maps, 0), {"noise": math.nan}, "noise must be .*, got nan"),
        ((Watcher(), images, maps, 0), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ((Watcher(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            infidelity(*arguments, **options)
    cases = [
        ((bent, images[0]), {}, r"images must be \(B, C, H, W\)"),
        ((bent, -images), {}, r"floats in \[0, 1\]"),
        ((lambda x: x, images), {}, r"explain answered 2 images with \(2, 3, 8, 8\)"),
        ((bent, images), {"radius": -1}, "radius must be a number above 0, .* got -1"),
        ((bent, images), {"radius": math.inf}, "radius must be a number above 0, .* got inf"),
        ((bent, images), {"draws": 0}, "draws must be at least 1, got 0"),
        ((bent, images), {"seed": [1, 2, 3]}, "3 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            max_sensitivity(*arguments, **options)


def test_maps_of_the_bundled_network_move_more_the_farther_its_images_do(model, spec):
    images = whycam.open_source("bundled").read(range(6)).float() / 255
    explainer = whycam.Explainer(model, "layer4[-1]", "gradcam")
    first = explainer(spec.preprocess(images))
    targets = first.predicted

    def explain(x):
        return explainer(spec.preprocess(x), targets).map("gradcam", "layer4[-1]")

    little, more, much = (
        max_sensitivity(explain, images, radius=radius, draws=3).mean() for radius in (0.005, 0.02, 0.1)
    )
    assert 0 < little < more < much
    maps = first.map("gradcam", "layer4[-1]")
    found = infidelity(model, images, maps, targets, draws=8, preprocess=spec.preprocess)
    assert ((found.unexplained > 0) & (found.unexplained <= 1)).all()
    blind = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    control = infidelity(model, images, blind, targets, draws=8, preprocess=spec.preprocess)
    assert control.unexplained.mean() < 0.9 * (1 - 1 / 8)  # a sure network is less so under any noise
