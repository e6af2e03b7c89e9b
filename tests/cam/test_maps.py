"""Flags, heatmaps, resizing and aggregation of maps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from networks import InPlace, make_network
from torch.nn import functional as F

import whycam
from whycam import WhycamError
from whycam.cam.maps import aggregate, flags_of, heatmaps, resize

RAW = hnp.arrays(
    np.float32, (2, 4, 5), elements=st.floats(-1e3, 1e3, width=32, allow_nan=False).map(lambda v: round(v, 3))
)


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], ("all-zero",)),
        ([[-1.0, 0.0], [-2.0, -3.0]], ("negative-only",)),
        ([[-1.0, -1.0], [-1.0, -1.0]], ("negative-only", "constant")),
        ([[2.0, 2.0], [2.0, 2.0]], ("constant",)),
        ([[1.0, float("nan")], [0.0, 0.0]], ("non-finite",)),
        ([[1.0, float("inf")], [0.0, 0.0]], ("non-finite",)),
        ([[1.0, 0.0], [-1.0, 0.0]], ()),
    ],
)
def test_flags(values, flags):
    large = torch.tensor(values).repeat(2, 2)[None]
    assert flags_of(large) == [flags]
    assert flags_of(torch.tensor(values)[None]) == [(*flags, "coarse")]


@settings(max_examples=100, deadline=None)
@given(RAW)
def test_heatmap_keeps_zero_and_order(raw):
    raw = torch.from_numpy(raw)
    shown = heatmaps(raw, (4, 5))
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert bool((shown[raw <= 0] == 0).all())
    top = raw.relu().amax((1, 2), keepdim=True)
    torch.testing.assert_close(shown * top, raw.relu(), rtol=1e-5, atol=1e-30)


@settings(max_examples=50, deadline=None)
@given(RAW, st.floats(0.5, 100))
def test_shared_scale_makes_brightness_comparable(raw, scale):
    raw = torch.from_numpy(raw)
    shown = heatmaps(raw, (4, 5), scale=scale)
    torch.testing.assert_close(shown, (raw.relu() / scale).clamp(max=1))


def test_heatmap_without_positive_evidence_is_zero():
    raw = torch.stack([torch.zeros(4, 4), -torch.ones(4, 4), torch.full((4, 4), torch.nan)])
    assert heatmaps(raw, (8, 8)).abs().max() == 0


def bilinear_reference(values, size):
    """Half-pixel centers, border values repeated, one output pixel at a time in float64."""
    h, w = values.shape
    result = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = values[y0, x0] * (1 - (x - x0)) + values[y0, x1] * (x - x0)
            bottom = values[y1, x0] * (1 - (x - x0)) + values[y1, x1] * (x - x0)
            result[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return result


@pytest.mark.parametrize("size", [(32, 32), (7, 11), (4, 9)])
def test_resize_equals_a_bilinear_reference(generator, size):
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    expected = bilinear_reference(values.numpy(), size)
    np.testing.assert_allclose(resize(values[None], size)[0].numpy(), expected, atol=1e-12)


def test_nearest_keeps_the_native_grid(generator):
    raw = torch.randn(1, 4, 4, generator=generator)
    shown = resize(raw, (32, 32), "nearest")
    torch.testing.assert_close(shown, raw.repeat_interleave(8, 1).repeat_interleave(8, 2))


def test_aggregate():
    module, images = make_network(InPlace)
    explained = whycam.explain(module, images, ["norm", "act2"], ["gradcam", "layercam"])
    fine, coarse = (explained.map("gradcam", layer) for layer in ("norm", "act2"))
    assert fine.shape[1:] == (9, 9)

    def scaled(raw):
        unit = raw.clamp(min=0) / raw.clamp(min=0).amax((1, 2), keepdim=True)
        unit = unit.nan_to_num(nan=0.0)
        return F.interpolate(unit[:, None], size=(9, 9), mode="bilinear", align_corners=False)[:, 0]

    both = torch.stack([scaled(fine), scaled(coarse)])
    for how, expected in {"mean": both.mean(0), "max": both.amax(0), "product": both.prod(0)}.items():
        torch.testing.assert_close(explained.aggregate("gradcam", how=how), expected)
    one = explained.aggregate("gradcam", ["act2"], size="image")
    torch.testing.assert_close(one, explained.heatmap("gradcam", "act2"))
    assert explained.aggregate("gradcam", ["act2"]).shape == coarse.shape
    assert explained.aggregate("gradcam", size=(4, 6)).shape == (3, 4, 6)
    for method, layers in [("gradcam", ["norm", "conv9"]), ("scorecam", None)]:
        with pytest.raises(WhycamError, match="this explanation has no"):
            explained.aggregate(method, layers)
    with pytest.raises(WhycamError, match="several methods"):
        explained.aggregate()
    with pytest.raises(WhycamError, match="by mean, max or product, not 'sum'"):
        explained.aggregate("gradcam", how="sum")
    with pytest.raises(WhycamError, match="no map to aggregate"):
        aggregate([])
    empty = aggregate([-torch.ones(1, 2, 2), torch.ones(1, 4, 4)], "product")
    assert torch.equal(empty, torch.zeros(1, 4, 4))
    assert torch.equal(aggregate([fine]), heatmaps(fine, (9, 9)))
    assert resize(fine, (9, 9)) is fine
    assert copy.copy(explained).layers == explained.layers
