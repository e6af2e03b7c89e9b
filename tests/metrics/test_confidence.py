"""Average Drop, Increase and Gain: by hand, against a loop over images and pixels, and on the bundled network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from watcher import SIDE, Largest, Watcher, scene

import whycam
from whycam.cam.maps import heatmaps, resize
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.confidence_drop import ConfidenceChange, confidence_change


def noise(count, side=SIDE, seed=1):
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


def between(cells, place, length):
    """Linear interpolation of (n,) values, each in the middle of its n-th of the axis, at a pixel's middle."""
    at = min(max((place + 0.5) * len(cells) / length - 0.5, 0), len(cells) - 1)
    low = math.floor(at)
    high = min(low + 1, len(cells) - 1)
    return cells[low] + (at - low) * (cells[high] - cells[low])


def shown(image, raw, fill):
    """(C, H, W) image and fill, (h, w) map: what the network is to see, pixel by pixel."""
    positive = np.maximum(raw, 0)
    unit = positive / positive.max() if positive.max() > 0 else positive
    out = np.empty_like(image)
    for y in range(image.shape[1]):
        row = [between(column, y, image.shape[1]) for column in unit.T]
        for x in range(image.shape[2]):
            heat = between(row, x, image.shape[2])
            out[:, y, x] = fill[:, y, x] + (image[:, y, x] - fill[:, y, x]) * heat
    return out


@pytest.mark.parametrize("fill", ["black", "mean", "given"])
@pytest.mark.parametrize("side", [12, 4, 5])
def test_the_scores_are_those_of_a_slow_loop(fill, side):
    images, _ = scene(4, torch.float64)
    maps, model, targets = noise(4, side), Watcher().eval(), [0, 1, 1, 0]
    maps[3] = -maps[3].abs()  # nothing is left of this one
    places = {
        "black": torch.zeros_like(images),
        "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images),
        "given": images.flip(0),
    }[fill]
    found = confidence_change(model, images, maps, targets, fill=places if fill == "given" else fill)
    for b, target in enumerate(targets):
        seen = shown(images[b].numpy(), maps[b].double().numpy(), places[b].numpy())
        y, o = (float(model(x[None]).softmax(dim=1)[0, target]) for x in (images[b], torch.from_numpy(seen)))
        assert float(found.before[b]) == pytest.approx(y, abs=1e-6)
        assert float(found.after[b]) == pytest.approx(o, abs=1e-6)
        # A division by little multiplies the scores' rounding.
        assert float(found.drop[b]) == pytest.approx(max(0, y - o) / y, abs=1e-6 / y)
        assert float(found.gain[b]) == pytest.approx(max(0, o - y) / (1 - y), abs=1e-6 / (1 - y))
        assert float(found.increase[b]) == (1 if o > y + 1e-6 else 0)
    assert found.before.shape == found.after.shape == found.drop.shape == found.gain.shape == (4,)


def test_drop_increase_and_gain_by_hand():
    rows = [  # Y, O, drop, increase, gain
        (0.8, 0.2, 0.75, 0, 0),
        (0.5, 0.9, 0, 1, 0.8),
        (0.25, 0.25, 0, 0, 0),
        (0, 0.5, 0, 1, 0.5),
        (0, 0, 0, 0, 0),
        (1, 0.25, 0.75, 0, 0),
        (1, 1, 0, 0, 0),
        (0.5, 0, 1, 0, 0),
        (0.5, 1, 0, 1, 1),
        (1.000001, 1, 0, 0, 0),  # a sum of probabilities, rounded
        (0.5, 1.000001, 0, 1, 1),
    ]
    before, after, drop, increase, gain = torch.tensor(rows, dtype=torch.float64).T
    found = ConfidenceChange(before, after)
    torch.testing.assert_close(found.drop, drop)
    torch.testing.assert_close(found.gain, gain)
    assert torch.equal(found.increase, increase)


def test_scores_that_are_no_probabilities_have_no_drop():
    images, truth = scene(2)
    found = confidence_change(lambda x: Watcher().eval()(x)[:, 0], images, truth)
    assert found.before.max() > 1  # the scores themselves are there to be looked at
    for name in ("drop", "increase", "gain"):
        with pytest.raises(
            WhycamError, match=r"^drop, increase and gain are of probabilities, and .* from .* to .*: give"
        ):
            getattr(found, name)
    with pytest.raises(WhycamError, match=r"from -1 to 0\.5"):
        ConfidenceChange(torch.tensor([0.5]), torch.tensor([-1.0])).drop.sum()


def test_a_map_that_marks_everything_changes_nothing_and_one_that_marks_nothing_leaves_the_fill():
    images, _ = scene(3)
    model = Watcher()
    for fill in ("black", "mean", "blur", torch.tensor(0.5)):
        everything = confidence_change(model, images, torch.full((3, 4, 4), 0.2), 0, fill=fill)
        assert torch.equal(everything.after, everything.before)
        assert not everything.drop.any()
        assert not everything.increase.any()
        assert not everything.gain.any()
    for nothing in (torch.zeros(3, 4, 4), torch.full((3, 4, 4), -1.0)):
        hidden = confidence_change(model, images, nothing, 0, fill=torch.tensor(0.5))
        asked = confidence_change(model, torch.full_like(images, 0.5), nothing, 0)
        torch.testing.assert_close(hidden.after, asked.before)


def test_a_map_that_knows_loses_less_than_noise_and_noise_less_than_a_map_that_is_wrong():
    images, truth = scene(20)
    drops = [confidence_change(Watcher(), images, maps, 0).drop.mean() for maps in (truth, noise(20), 1 - truth)]
    assert drops[0] < 0.5 * drops[1] < 0.5 * drops[2]
    # Without the light elsewhere the first class is surer than before.
    right = confidence_change(Watcher(), images, truth, 0)
    assert right.increase.all()
    assert right.gain.mean() > 0.2


def test_a_batch_is_its_images_and_its_size_does_not_matter():
    images, _ = scene(7)
    maps, targets = noise(7, 4), torch.tensor([0, 1, 0, 0, 1, 1, 0])
    whole = confidence_change(Watcher(), images, maps, targets, fill="blur")
    for size in (1, 3, 7):
        other = confidence_change(Watcher(), images, maps, targets, fill="blur", batch_size=size)
        for name in ("before", "after"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), atol=1e-6, rtol=0)
    order = torch.tensor([4, 0, 6, 2])
    some = confidence_change(Watcher(), images[order], maps[order], targets[order], fill="blur")
    torch.testing.assert_close(some.after, whole.after[order], atol=1e-6, rtol=0)
    # A map's scale is nobody's business.
    scaled = confidence_change(Watcher(), images, 1000 * maps, targets, fill="blur")
    torch.testing.assert_close(scaled.after, whole.after, atol=1e-6, rtol=0)
    assert confidence_change(Watcher(), images[:0], maps[:0], 0).drop.shape == (0,)


def test_no_more_altered_images_than_asked_for_are_there_at_a_time():
    images, truth = scene(50)
    asked = []

    def model(x):
        asked.append(len(x))
        return Watcher().eval()(x)

    with Largest() as largest:
        confidence_change(model, images, truth, 0, batch_size=20)
    assert asked == [20, 20, 10, 20, 20, 10]
    # The maps at the image's size have one channel of three.
    assert largest.numbers == max(20 * 3, 50) * SIDE * SIDE


def test_normalization_and_scores_may_be_given_apart():
    images, _ = scene(4)
    maps, model = noise(4), Watcher().eval()
    plain = confidence_change(model, images, maps, 1)
    shifted = confidence_change(lambda x: model(x / 2 + 0.5), images, maps, 1, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.after, plain.after, atol=1e-6, rtol=0)
    scored = confidence_change(lambda x: model(x).softmax(dim=1)[:, 1], images, maps)
    torch.testing.assert_close(scored.drop, plain.drop)


def test_what_is_shown_never_leaves_the_range():
    """Where a map is 1 over several cells, interpolation between them is rounded to more than 1 at this size."""
    draw, seen = torch.Generator().manual_seed(9), []

    def brightness(x):
        seen.append((float(x.min()), float(x.max())))
        return x.mean(dim=(1, 2, 3))

    maps = [(torch.rand(20, side, side, generator=draw) > 0.3).float() for side in range(2, 15)]
    assert max(resize(one, (33, 50)).max() for one in maps) > 1
    assert max(heatmaps(one, (33, 50)).max() for one in maps) == 1
    for one in maps:
        confidence_change(brightness, torch.ones(20, 1, 33, 50), one)
    assert seen == [(1, 1), (0, 1)] * 13


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_precision(dtype):
    images, _ = scene(3)
    plain = confidence_change(Watcher(), images, noise(3), 0, fill="blur")
    other = confidence_change(Watcher(), images.to(dtype), noise(3).double(), 0, fill="blur")
    torch.testing.assert_close(other.after, plain.after, atol=4 * torch.finfo(dtype).eps + 1e-6, rtol=0)


def test_the_model_is_left_as_it_was():
    images, truth = scene(2)
    model, calls = Watcher().train(), []
    model.dropout.eval()
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    confidence_change(model, images, truth, 0)
    assert calls == [False, False]
    with pytest.raises(ZeroDivisionError):
        confidence_change(model, images, truth, 0, preprocess=lambda x: x / (1 // 0))
    for state in (model.training, not model.dropout.training, torch.is_grad_enabled(), len(model._forward_hooks) == 1):
        assert state
    assert all(parameter.grad is None for parameter in model.parameters())
    # It was asked without dropout although the whole was in training mode.
    model.dropout.train()
    torch.testing.assert_close(
        confidence_change(model, images, truth, 0).before, confidence_change(Watcher().eval(), images, truth, 0).before
    )


def test_what_cannot_be_scored_is_one_sentence():
    images, maps = scene(2)
    broken, huge = maps.clone(), maps.double()
    broken[1, 0, 0] = torch.nan
    huge[1, 0, 0] = 1e300  # beyond single precision
    cases = [
        ((Watcher(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((Watcher(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((Watcher(), images, broken, 0), {}, "map 1 holds NaN or infinity"),
        ((Watcher(), images, huge, 0), {}, "map 1 holds NaN or infinity"),
        ((Watcher(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((Watcher(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((Watcher(), images, maps), {}, r"answered 2 images with \(2, 2\), expected one score"),
        ((lambda x: Watcher()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        ((Watcher(), images, maps, 0), {"fill": "white"}, "fill is 'black', 'mean', 'blur' or a tensor"),
        ((Watcher(), images, maps, 0), {"fill": torch.zeros(2, 1, 1)}, "does not broadcast"),
        ((Watcher(), images, maps, 0), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            confidence_change(*arguments, **options)


def test_grad_cam_of_the_bundled_network_loses_less_than_its_negative(model, spec):
    pixels = whycam.open_source("bundled").read(range(24)).float() / 255
    inputs = spec.preprocess(pixels)
    explanation = whycam.explain(model, inputs, ["layer4[-1]"], ["gradcam"])
    maps, targets = explanation.map("gradcam", "layer4[-1]"), explanation.predicted
    right, wrong = (
        confidence_change(model, pixels, sign * maps, targets, preprocess=spec.preprocess) for sign in (1, -1)
    )
    with torch.no_grad():
        probabilities = model(inputs).softmax(dim=1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(right.before, probabilities, atol=1e-5, rtol=0)
    assert torch.equal(right.before, wrong.before)
    assert right.drop.mean() < wrong.drop.mean()
    assert right.increase.mean() > wrong.increase.mean()
    assert right.gain.mean() > wrong.gain.mean()
