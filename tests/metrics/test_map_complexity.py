"""Complexity, sparseness and entropy: against slow loops and scipy, and at both ends of each scale."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.map_complexity import complexity, entropy, sparseness


def gini(values):
    """Chalasani et al.: 1 − 2 Σ v₍ₖ₎ / ‖v‖₁ · (d − k + ½) / d over the sorted magnitudes, k from 1."""
    ordered = sorted(abs(v) for v in values)
    d, total = len(ordered), sum(ordered)
    return 1 - 2 * sum(v / total * (d - k + 0.5) / d for k, v in enumerate(ordered, start=1))


def signed_maps(count, generator, height=5, width=7):
    found = torch.randn(count, height, width, generator=generator).double()
    return torch.where(found.abs() < 0.3, 0, found)


def test_metrics_equal_slow_loops_and_scipy(generator):
    maps = signed_maps(6, generator)
    heat = heatmaps(maps, (10, 14))
    for b in range(6):
        values = maps[b].flatten().tolist()
        assert float(sparseness(maps)[b]) == pytest.approx(gini(values), abs=1e-13)
        assert float(entropy(maps)[b]) == pytest.approx(stats.entropy([abs(v) for v in values], base=35), abs=1e-13)
        assert float(complexity(heat)[b]) == pytest.approx(sum(heat[b].flatten().tolist()) / 140, abs=1e-13)


@pytest.mark.parametrize("value", [1.0, -0.1, 1e-40, 1e30])
def test_constant_maps_and_maps_of_one_cell(value):
    even, one = torch.full((1, 6, 6), value), torch.zeros(1, 6, 6)
    one[0, 2, 3] = value
    assert float(sparseness(even)) == 0
    assert float(entropy(even)) == pytest.approx(1, abs=1e-14)
    assert float(sparseness(one)) == pytest.approx(1 - 1 / 36, abs=1e-14)
    assert float(entropy(one)) == 0
    few = torch.zeros(1, 6, 6)
    few[0, 0] = value  # six of 36 cells, equally
    assert float(sparseness(few)) == pytest.approx(1 - 6 / 36, abs=1e-14)
    assert float(entropy(few)) == pytest.approx(math.log(6) / math.log(36), abs=1e-14)


def test_the_entropy_of_a_zero_map_is_nan():
    maps = torch.zeros(3, 4, 4)
    maps[1, 0, 0] = -2
    assert sparseness(maps).tolist() == [0, 1 - 1 / 16, 0]
    assert entropy(maps).isnan().tolist() == [True, False, True]
    assert complexity(maps.relu()).tolist() == [0, 0, 0]
    assert float(complexity(torch.ones(1, 4, 4))) == 1
    # A map with a single cell is constant and concentrated at once.
    assert entropy(torch.ones(1, 1, 1)).isnan().all()
    assert float(sparseness(torch.ones(1, 1, 1))) == 0


def test_sign_unit_and_position_do_not_matter(generator):
    maps = signed_maps(5, generator)
    order = torch.randperm(35, generator=generator)
    shuffled = maps.flatten(1)[:, order].view_as(maps)
    for score in (sparseness, entropy):
        assert 0 < score(maps).min() <= score(maps).max() < 1
        for same in (-maps, maps.abs(), 8 * maps, 1e-250 * maps, 1e250 * maps, shuffled, maps.mT):
            torch.testing.assert_close(score(same), score(maps), atol=1e-13, rtol=0)
    # The cube of a map is sparser.
    assert (sparseness(maps**3) > sparseness(maps)).all()
    assert (entropy(maps**3) < entropy(maps)).all()


def test_scores_do_not_depend_on_the_rest_of_the_batch(generator):
    maps = signed_maps(5, generator)
    for score, given in ((sparseness, maps), (entropy, maps), (complexity, heatmaps(maps, (8, 8)).float())):
        whole = score(given)
        assert whole.dtype == torch.float64
        for b in range(5):
            torch.testing.assert_close(score(given[b : b + 1]), whole[b : b + 1], atol=1e-14, rtol=0)
        assert score(given[:0]).shape == (0,)
    assert sparseness(torch.tensor([[[0, 3]]])).tolist() == [0.5]


def test_rounding_does_not_lift_scores_above_1():
    lit = float(complexity(heatmaps(torch.ones(1, 4, 4), (33, 33))))
    assert lit <= 1
    assert lit == pytest.approx(1, abs=1e-6)
    assert all(float(entropy(torch.ones(1, 1, cells))) <= 1 for cells in range(2, 200))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite(value, generator):
    maps = signed_maps(3, generator)
    maps[1, 2, 2] = value
    for score in (sparseness, entropy):
        assert score(maps).isnan().tolist() == [False, True, False]
    with pytest.raises(WhycamError, match=r"heatmaps in \[0, 1\], got values from .* to (nan|inf)"):
        complexity(maps.abs() / 100)


def test_wrong_arguments_are_refused(generator):
    maps = signed_maps(2, generator)
    for score in (complexity, sparseness, entropy):
        for wrong in (maps[0], maps[:, None], maps[:, :0]):
            with pytest.raises(WhycamError, match=r"maps must be \(B, h, w\), got \("):
                score(wrong)
    for wrong in (maps, 2 + maps.abs(), -maps.abs()):
        with pytest.raises(WhycamError, match=r"in \[0, 1\], got values from .*scale them with whycam.cam.maps.heat"):
            complexity(wrong)
