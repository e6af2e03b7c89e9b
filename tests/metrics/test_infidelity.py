"""Infidelity: against a slow loop, on linear scores that a map can predict exactly, and its seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import whycam
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.infidelity import infidelity
from whycam.seeds import per_image

SIDE = 8


def random_images(count, channels=3, seed=0):
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def noise_maps(count, seed=5):
    return torch.randn(count, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class SquareNet(nn.Module):
    """The first logit grows with the brightness of a square, the second with that of the whole image."""

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


def reference(score, image, full, draw, draws, noise):
    """(error, unexplained) of one image: Σ I Φ / C over all values, the best factor, and the mean squared error."""
    predicted, change = [], []
    for _ in range(draws):
        altered = (image - noise * torch.randn(image.shape, generator=draw)).clamp(0, 1)
        subtracted = (image.double() - altered.double()).tolist()
        predicted.append(
            sum(subtracted[c][i][j] * full[i][j] / len(subtracted) for c in range(len(subtracted)) for i in range(SIDE)
                for j in range(SIDE))
        )  # fmt: skip
        change.append(float(score(image[None])[0]) - float(score(altered[None])[0]))
    factor = sum(a * d for a, d in zip(predicted, change, strict=True)) / sum(a * a for a in predicted)
    error = sum((factor * a - d) ** 2 for a, d in zip(predicted, change, strict=True)) / draws
    return error, error / (sum(d * d for d in change) / draws)


def test_infidelity_equals_a_slow_loop():
    images, model = random_images(3), SquareNet().eval()
    maps = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))
    full = nn.functional.interpolate(maps[:, None].double(), (SIDE, SIDE), mode="bilinear")[:, 0].tolist()
    targets = [0, 1, 0]
    found = infidelity(model, images, maps, targets, draws=12, noise=0.3, seed=[4, 5, 6])
    assert found.error.dtype == found.unexplained.dtype == torch.float64
    for b, draw in enumerate(per_image("infidelity", [4, 5, 6], 3)):
        error, share = reference(lambda x, b=b: model(x).softmax(1)[:, targets[b]], images[b], full[b], draw, 12, 0.3)
        assert float(found.error[b]) == pytest.approx(error, rel=1e-4)
        assert float(found.unexplained[b]) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_weights_of_a_linear_score_predict_its_change(channels):
    """Also where clipping reduced the noise, because I is the difference that remains."""
    images, (score, weights) = random_images(5, channels), linear(channels)
    right = infidelity(score, images, weights.expand(5, -1, -1), noise=0.5)
    assert right.error.max() < 1e-10
    assert right.unexplained.max() < 1e-10
    # In any unit, and with either sign: the fitted factor can be negative.
    for unit in (1e-30, 7.0, -1.0, 1e30):
        assert infidelity(score, images, unit * weights.double().expand(5, -1, -1)).unexplained.max() < 1e-10
    # Noise added to the weights raises the error by the noise's share of the squared length.
    added = noise_maps(5)
    mixed = infidelity(score, images, weights + added, draws=600).unexplained
    assert (mixed - 0.5).abs().max() < 0.2
    assert (infidelity(score, images, weights + 0.1 * added).unexplained < mixed / 10).all()


def test_a_map_without_information_explains_only_what_the_fitted_factor_explains():
    images, (score, weights) = random_images(60, 1), linear(1)
    orthogonal = noise_maps(60)
    orthogonal -= (orthogonal * weights).sum(dim=(1, 2), keepdim=True) / weights.square().sum() * weights
    for draws in (4, 64):
        share = infidelity(score, images, orthogonal, draws=draws).unexplained
        spread = share.std() / math.sqrt(60)
        assert abs(float(share.mean()) - (1 - 1 / draws)) < 4 * float(spread)
        assert share.max() <= 1
    # Zeros predict no change, so all of it is unexplained.
    none = infidelity(score, images, torch.zeros(60, 2, 2))
    assert none.unexplained.tolist() == [1] * 60
    assert (none.error > infidelity(score, images, orthogonal).error).all()
    # For a constant score the error is 0, and its share is undefined.
    unchanged = infidelity(lambda x: x.new_ones(len(x)), images, orthogonal)
    assert unchanged.error.tolist() == [0] * 60
    assert unchanged.unexplained.isnan().all()


def test_infidelity_ignores_the_unit_of_maps_and_the_batch_size():
    images, maps, model = random_images(4), noise_maps(4), SquareNet().train()
    plain = infidelity(model, images, maps, 0)
    assert model.training
    assert model.dropout.training
    close = {"atol": 1e-9, "rtol": 1e-4}
    for same in (3 * maps, -maps, 1e-12 * maps.double()):
        torch.testing.assert_close(infidelity(model, images, same, 0).unexplained, plain.unexplained, **close)
        torch.testing.assert_close(infidelity(model, images, same, 0).error, plain.error, **close)
    shifted = infidelity(lambda x: SquareNet().eval()(x / 2 + 0.5), images, maps, 0, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.error, plain.error, **close)
    scored = infidelity(lambda x: SquareNet().eval()(x).softmax(dim=1)[:, 0], images, maps)
    torch.testing.assert_close(scored.error, plain.error, **close)
    for batch_size in (1, 50, 1000):
        again = infidelity(model, images, maps, 0, batch_size=batch_size)
        torch.testing.assert_close(again.error, plain.error, **close)


def test_the_infidelity_of_an_image_does_not_depend_on_its_batch():
    images, maps, seeds, targets = random_images(5), noise_maps(5), [11, 12, 13, 14, 15], [0, 1, 0, 1, 0]
    close = {"atol": 1e-9, "rtol": 1e-4}
    whole = infidelity(SquareNet(), images, maps, targets, seed=seeds, draws=20)
    for order in ([4, 2], [0], [3, 1, 0, 2, 4]):
        own, classes = [seeds[i] for i in order], [targets[i] for i in order]
        some = infidelity(SquareNet(), images[order], maps[order], classes, seed=own, draws=20, batch_size=7)
        torch.testing.assert_close(some.error, whole.error[order], **close)
        torch.testing.assert_close(some.unexplained, whole.unexplained[order], **close)
    none = infidelity(SquareNet(), images[:0], maps[:0], 0)
    assert none.error.shape == none.unexplained.shape == (0,)


def test_infidelity_is_reproducible_and_leaves_the_global_generator_alone():
    images, maps = random_images(3), noise_maps(3)
    before = torch.get_rng_state()
    first = infidelity(SquareNet(), images, maps, 0)
    torch.rand(5)
    assert torch.equal(infidelity(SquareNet(), images, maps, 0).error, first.error)
    assert not torch.equal(infidelity(SquareNet(), images, maps, 0, seed=1).error, first.error)
    torch.set_rng_state(before)
    infidelity(SquareNet(), images, maps, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_arguments_of_infidelity_are_refused():
    images, maps = random_images(2), noise_maps(2)
    broken = maps.clone()
    broken[1, 0, 0] = math.nan
    cases = [
        ((SquareNet(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 8, 8\) and \(1, 8, 8\)"),
        ((SquareNet(), 3 * images, maps, 0), {}, r"floats in \[0, 1\]"),
        ((SquareNet(), images, broken, 0), {}, "map 1 holds NaN or infinity"),
        ((SquareNet(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((SquareNet(), images, maps), {}, r"answered 2 images with \(2, 2\), expected one score"),
        (
            (SquareNet(), images, maps, 0),
            {"draws": 1},
            "draws must be at least 2, got 1: any map, scaled, predicts a single change",
        ),
        (
            (SquareNet(), images, maps, 0),
            {"noise": 0},
            r"noise must be a number above 0, for images in \[0, 1\], got 0",
        ),
        ((SquareNet(), images, maps, 0), {"noise": math.nan}, "noise must be .*, got nan"),
        ((SquareNet(), images, maps, 0), {"batch_size": 0}, "the batch size must be at least 1, got 0"),
        ((SquareNet(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            infidelity(*arguments, **options)


def test_on_the_bundled_network_grad_cam_predicts_part_of_the_change(model, spec):
    images = whycam.open_source("bundled").read(range(6)).float() / 255
    explanation = whycam.explain(model, spec.preprocess(images), "layer4[-1]", "gradcam")
    maps, targets = explanation.map("gradcam", "layer4[-1]"), explanation.predicted
    found = infidelity(model, images, maps, targets, draws=8, preprocess=spec.preprocess)
    assert ((found.unexplained > 0) & (found.unexplained <= 1)).all()
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    control = infidelity(model, images, noise, targets, draws=8, preprocess=spec.preprocess)
    # The network is confident here, so noise of any kind lowers its score, and even a noise map predicts that.
    assert control.unexplained.mean() < 0.9 * (1 - 1 / 8)
