"""ROAD: against a slow loop, and what must and must not change the score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imputation_reference import solved
from square_net import SIDE, SquareNet, scene
from torch import nn

from whycam.errors import WhycamError
from whycam.metrics import bootstrap_interval, road


def test_the_true_map_scores_far_above_noise_and_the_negated_map_far_below():
    images, truth = scene(30)
    noise = torch.randn(30, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    right, wrong, none = (road(SquareNet(), images, maps, 0).combined for maps in (truth, -truth, noise))
    low, high = bootstrap_interval(none)
    assert low < 0 < high
    assert bootstrap_interval(right)[0] > 3 * high > 0
    assert bootstrap_interval(wrong)[1] < 3 * low < 0


def test_road_equals_a_slow_loop():
    images, _ = scene(3)
    model, maps = SquareNet().eval(), torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))
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


def test_only_the_order_of_map_values_matters():
    images, _ = scene(4)
    maps = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    model = SquareNet().train()
    plain = road(model, images, maps, 0)
    assert model.training
    assert model.dropout.training  # the mode is restored, and dropout was off:
    assert torch.equal(plain.morf, road(SquareNet().eval(), images, maps, 0).morf)
    for same in (3 * maps, maps + 7, maps.exp()):
        assert torch.equal(road(model, images, same, 0).morf, plain.morf)
    opposite = road(model, images, -maps, 0)
    assert torch.equal(opposite.morf, plain.lerf)
    assert torch.equal(opposite.combined, -plain.combined)
    # Normalization inside the model or as preprocess gives the same score.
    shifted = road(lambda x: SquareNet().eval()(x / 2 + 0.5), images, maps, 0, preprocess=lambda x: 2 * x - 1)
    torch.testing.assert_close(shifted.lerf, plain.lerf, atol=1e-5, rtol=0)
    # So does a function that returns scores.
    scored = road(lambda x: SquareNet().eval()(x).softmax(dim=1)[:, 0], images, maps)
    torch.testing.assert_close(scored.lerf, plain.lerf)


def test_a_score_does_not_depend_on_the_rest_of_the_batch():
    images, _ = scene(5)
    maps = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(7)).float()
    whole = road(SquareNet(), images, maps, 0, seed=[11, 12, 13, 14, 15])
    for order in ([4, 2], [0]):
        some = road(SquareNet(), images[order], maps[order], 0, seed=[11 + i for i in order], batch_size=1)
        torch.testing.assert_close(some.morf, whole.morf[order], atol=1e-5, rtol=0)
    assert not torch.equal(road(SquareNet(), images, maps, 0, seed=1).morf, whole.morf)
    assert road(SquareNet(), images[:0], maps[:0], 0).combined.shape == (0,)


def test_wrong_arguments_are_refused():
    images, maps = scene(2)
    broken = maps.clone()
    broken[1, 0, 0] = torch.nan
    cases = [
        ((SquareNet(), images, maps[:1], 0), {}, r"one for each image, got \(2, 3, 12, 12\) and \(1, 12, 12\)"),
        ((SquareNet(), images * 3, maps, 0), {}, r"floats in \[0, 1\], got float32 from .*as preprocess"),
        ((SquareNet(), images, broken, 0), {}, "map 1 holds NaN or infinity: its pixels have no order"),
        ((SquareNet(), images, maps, 5), {}, r"classes from 0 to 1, got \[5\]"),
        ((SquareNet(), images, maps, [0]), {}, "1 targets for 2 images"),
        ((SquareNet(), images, maps), {}, r"answered 12 images with \(12, 2\), expected one score"),
        ((lambda x: x.mean(dim=(1, 2, 3)), images, maps, 0), {}, r"expected \(n, K\) logits"),
        ((lambda x: SquareNet()(x) / 0, images, maps, 0), {}, "NaN or infinite"),
        ((SquareNet(), images, maps, 0), {"percentiles": ()}, "no percentile is given"),
        (
            (SquareNet(), images, maps, 0),
            {"percentiles": (100,)},
            "percentile 100 of 144 pixels removes everything",
        ),
        (
            (SquareNet(), images, maps, 0),
            {"percentiles": (0.1,)},
            "percentile 0.1 of 144 pixels removes nothing",
        ),
        ((SquareNet(), images, maps, 0), {"seed": [1]}, "1 seeds for 2 images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            road(*arguments, **options)
