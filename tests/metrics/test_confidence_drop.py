"""Average Drop, Increase and Gain: by hand, against a slow loop, and on the bundled network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from square_net import SIDE, LargestTensor, SquareNet, scene

import whycam
from whycam.cam.maps import heatmaps, resize
from whycam.errors import WhycamError
from whycam.metrics.faithfulness.confidence_drop import ConfidenceChange, confidence_change


def noise(count, side=SIDE, seed=1):
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


def interpolated(cells, place, length):
    """Linear interpolation of (n,) cells along an axis of ``length`` pixels, at the center of pixel ``place``."""
    at = min(max((place + 0.5) * len(cells) / length - 0.5, 0), len(cells) - 1)
    low = math.floor(at)
    high = min(low + 1, len(cells) - 1)
    return cells[low] + (at - low) * (cells[high] - cells[low])


def masked(image, raw, fill):
    """(C, H, W) image and fill, (h, w) map → the masked image, computed pixel by pixel."""
    positive = np.maximum(raw, 0)
    unit = positive / positive.max() if positive.max() > 0 else positive
    out = np.empty_like(image)
    for y in range(image.shape[1]):
        row = [interpolated(column, y, image.shape[1]) for column in unit.T]
        for x in range(image.shape[2]):
            heat = interpolated(row, x, image.shape[2])
            out[:, y, x] = fill[:, y, x] + (image[:, y, x] - fill[:, y, x]) * heat
    return out


@pytest.mark.parametrize("fill", ["black", "mean", "given"])
@pytest.mark.parametrize("side", [12, 4, 5])
def test_confidence_change_equals_a_slow_loop(fill, side):
    images, _ = scene(4, torch.float64)
    maps, model, targets = noise(4, side), SquareNet().eval(), [0, 1, 1, 0]
    maps[3] = -maps[3].abs()  # no positive evidence: the whole image is hidden
    places = {
        "black": torch.zeros_like(images),
        "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images),
        "given": images.flip(0),
    }[fill]
    found = confidence_change(model, images, maps, targets, fill=places if fill == "given" else fill)
    for b, target in enumerate(targets):
        seen = masked(images[b].numpy(), maps[b].double().numpy(), places[b].numpy())
        y, o = (float(model(x[None]).softmax(dim=1)[0, target]) for x in (images[b], torch.from_numpy(seen)))
        assert float(found.before[b]) == pytest.approx(y, abs=1e-6)
        assert float(found.after[b]) == pytest.approx(o, abs=1e-6)
        # Dividing by a small number multiplies rounding errors.
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


def test_drop_of_scores_outside_0_1_is_refused():
    images, truth = scene(2)
    found = confidence_change(lambda x: SquareNet().eval()(x)[:, 0], images, truth)
    assert found.before.max() > 1  # the scores themselves can be read
    for name in ("drop", "increase", "gain"):
        with pytest.raises(
            WhycamError, match=r"^drop, increase and gain need probabilities, and .* from .* to .*: give"
        ):
            getattr(found, name)
    with pytest.raises(WhycamError, match=r"from -1 to 0\.5"):
        ConfidenceChange(torch.tensor([0.5]), torch.tensor([-1.0])).drop.sum()


def test_a_constant_map_hides_nothing_and_a_zero_map_leaves_only_the_fill():
    images, _ = scene(3)
    model = SquareNet()
    for fill in ("black", "mean", "blur", torch.tensor(0.5)):
        everything = confidence_change(model, images, torch.full((3, 4, 4), 0.2), 0, fill=fill)
        assert torch.equal(everything.after, everything.before)
        assert not everything.drop.any()
        assert not everything.increase.any()
        assert not everything.gain.any()
    for nothing in (torch.zeros(3, 4, 4), torch.full((3, 4, 4), -1.0)):
        hidden = confidence_change(model, images, nothing, 0, fill=torch.tensor(0.5))
        fill_only = confidence_change(model, torch.full_like(images, 0.5), nothing, 0)
        torch.testing.assert_close(hidden.after, fill_only.before)


def test_the_true_map_drops_less_than_noise_and_noise_less_than_the_inverted_map():
    images, truth = scene(20)
    drops = [confidence_change(SquareNet(), images, maps, 0).drop.mean() for maps in (truth, noise(20), 1 - truth)]
    assert drops[0] < 0.5 * drops[1] < 0.5 * drops[2]
    # The true map hides light elsewhere, which speaks for the second class.
    right = confidence_change(SquareNet(), images, truth, 0)
    assert right.increase.all()
    assert right.gain.mean() > 0.2


def test_scores_do_not_depend_on_the_batch_or_the_scale_of_maps():
    images, _ = scene(7)
    maps, targets = noise(7, 4), torch.tensor([0, 1, 0, 0, 1, 1, 0])
    whole = confidence_change(SquareNet(), images, maps, targets, fill="blur")
    for size in (1, 3, 7):
        other = confidence_change(SquareNet(), images, maps, targets, fill="blur", batch_size=size)
        for name in ("before", "after"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), atol=1e-6, rtol=0)
    order = torch.tensor([4, 0, 6, 2])
    some = confidence_change(SquareNet(), images[order], maps[order], targets[order], fill="blur")
    torch.testing.assert_close(some.after, whole.after[order], atol=1e-6, rtol=0)
    # The scale of a map does not matter.
    scaled = confidence_change(SquareNet(), images, 1000 * maps, targets, fill="blur")
    torch.testing.assert_close(scaled.after, whole.after, atol=1e-6, rtol=0)
    assert confidence_change(SquareNet(), images[:0], maps[:0], 0).drop.shape == (0,)


def test_batch_size_limits_the_altered_images_in_memory():
    images, truth = scene(50)
    batches = []

    def model(x):
        batches.append(len(x))
        return SquareNet().eval()(x)

    with LargestTensor() as largest:
        confidence_change(model, images, truth, 0, batch_size=20)
    assert batches == [20, 20, 10, 20, 20, 10]
    # All maps at the image's size are in memory, with one channel each.
    assert largest.elements == max(20 * 3, 50) * SIDE * SIDE


def test_preprocess_and_score_functions_give_the_same_result():
    images, _ = scene(4)
    maps, model = noise(4), SquareNet().eval()
    plain = confidence_change(model, images, maps, 1)
    shifted = confidence_change(lambda x: model(x / 2 + 0.5), images, maps, 1, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.after, plain.after, atol=1e-6, rtol=0)
    scored = confidence_change(lambda x: model(x).softmax(dim=1)[:, 1], images, maps)
    torch.testing.assert_close(scored.drop, plain.drop)


def test_masked_images_stay_within_0_1():
    """At this size, interpolation between cells of value 1 gives more than 1 by rounding."""
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
    plain = confidence_change(SquareNet(), images, noise(3), 0, fill="blur")
    other = confidence_change(SquareNet(), images.to(dtype), noise(3).double(), 0, fill="blur")
    torch.testing.assert_close(other.after, plain.after, atol=4 * torch.finfo(dtype).eps + 1e-6, rtol=0)


def test_the_model_is_not_changed():
    images, truth = scene(2)
    model, calls = SquareNet().train(), []
    model.dropout.eval()
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    confidence_change(model, images, truth, 0)
    assert calls == [False, False]
    with pytest.raises(ZeroDivisionError):
        confidence_change(model, images, truth, 0, preprocess=lambda x: x / (1 // 0))
    for state in (model.training, not model.dropout.training, torch.is_grad_enabled(), len(model._forward_hooks) == 1):
        assert state
    assert all(parameter.grad is None for parameter in model.parameters())
    # Dropout is off during scoring although the model is in training mode.
    model.dropout.train()
    torch.testing.assert_close(
        confidence_change(model, images, truth, 0).before,
        confidence_change(SquareNet().eval(), images, truth, 0).before,
    )


def test_wrong_arguments_are_refused():
    images, maps = scene(2)
    broken, huge = maps.clone(), maps.double()
    broken[1, 0, 0] = torch.nan
    huge[1, 0, 0] = 1e300  # beyond single precision
    cases = [
        ((SquareNet(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((SquareNet(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((SquareNet(), images, broken, 0), {}, "map 1 holds NaN or infinity"),
        ((SquareNet(), images, huge, 0), {}, "map 1 holds NaN or infinity"),
        ((SquareNet(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((SquareNet(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((SquareNet(), images, maps), {}, r"answered 2 images with \(2, 2\), expected one score"),
        ((lambda x: SquareNet()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        ((SquareNet(), images, maps, 0), {"fill": "white"}, "fill is 'black', 'mean', 'blur' or a tensor"),
        ((SquareNet(), images, maps, 0), {"fill": torch.zeros(2, 1, 1)}, "does not broadcast"),
        ((SquareNet(), images, maps, 0), {"batch_size": 0}, "the batch size must be at least 1, got 0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            confidence_change(*arguments, **options)


def test_on_the_bundled_network_grad_cam_drops_less_than_its_negative(model, spec):
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
