"""Similarity of maps: against scipy and a slow loop, and the changes that each function must ignore."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from whycam.errors import WhycamError
from whycam.metrics.map_similarity import pearson, spearman, ssim

ALL = (pearson, spearman, ssim)


def maps(count, height=9, width=11, levels=None, seed=0):
    """Signed maps; with ``levels``, many ties."""
    draw = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (count, height, width), generator=draw).double() - levels // 2
    return torch.randn(count, height, width, generator=draw).double()


def ssim_reference(x, y, window, span):
    """The formula of Wang et al. for (h, w) lists, window by window."""
    c1, c2, n, found = (0.01 * span) ** 2, (0.03 * span) ** 2, window**2, []
    for top in range(len(x) - window + 1):
        for left in range(len(x[0]) - window + 1):
            a, b = (
                [grid[top + i][left + j] for i in range(window) for j in range(window)] for grid in (x, y)
            )  # fmt: skip
            mean_a, mean_b = sum(a) / n, sum(b) / n
            var_a, var_b = (
                sum((v - mean) ** 2 for v in values) / (n - 1) for values, mean in ((a, mean_a), (b, mean_b))
            )
            cov = sum((v - mean_a) * (w - mean_b) for v, w in zip(a, b, strict=True)) / (n - 1)
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * cov + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )  # fmt: skip
    return sum(found) / len(found)


@pytest.mark.parametrize("levels", [None, 2, 5])
def test_correlations_equal_those_of_scipy(levels):
    one, other = maps(4, levels=levels), maps(4, levels=levels, seed=1)
    other += 0.5 * one
    for b in range(4):
        x, y = one[b].flatten().numpy(), other[b].flatten().numpy()
        assert float(pearson(one, other)[b]) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-13)
        assert float(spearman(one, other)[b]) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-13)


@pytest.mark.parametrize("window", [2, 3, 4, 7, 9])
@pytest.mark.parametrize("span", [None, 1.0, 30.0])
def test_ssim_equals_a_slow_loop(window, span):
    one, other = maps(3), maps(3, seed=1) + 2
    found = ssim(one, other, window=window, span=span)
    for b in range(3):
        both = torch.stack([one[b], other[b]])
        reach = span or float(both.max() - both.min())
        expected = ssim_reference(one[b].tolist(), other[b].tolist(), window, reach)
        assert float(found[b]) == pytest.approx(expected, abs=1e-12)


def test_ssim_equals_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    one, other = maps(5, levels=6), maps(5, levels=6, seed=1) + 0.3 * maps(5, seed=2)
    for b in range(5):
        x, y = one[b].numpy(), other[b].numpy()
        reach = max(x.max(), y.max()) - min(x.min(), y.min())
        expected = metrics.structural_similarity(x, y, data_range=reach)
        assert float(ssim(one, other)[b]) == pytest.approx(expected, abs=1e-12)


def test_equal_maps_score_1_and_similarity_is_symmetric():
    one, other = maps(4), maps(4, seed=1)
    ones = torch.ones(4).double()
    for similarity in ALL:
        torch.testing.assert_close(similarity(one, one), ones, atol=1e-14, rtol=0)
        torch.testing.assert_close(similarity(one, other), similarity(other, one), atol=1e-14, rtol=0)
        assert (similarity(one, other) < 0.9).all()
        # Rotating both maps does not change the score.
        turned = similarity(one.rot90(1, (1, 2)), other.rot90(1, (1, 2)))
        torch.testing.assert_close(turned, similarity(one, other), atol=1e-13, rtol=0)
    for similarity in (pearson, spearman):
        torch.testing.assert_close(similarity(one, -one), -ones, atol=1e-14, rtol=0)


def test_changes_that_each_similarity_ignores():
    one, other = maps(4, levels=7), maps(4, levels=7, seed=1) + 0.1
    close = {"atol": 1e-12, "rtol": 0}
    for scale, shift in ((3.0, -5.0), (2.0**-10, 2.0**10), (1e200, 0.0), (1e-200, 0.0)):
        torch.testing.assert_close(pearson(scale * one + shift, other), pearson(one, other), **close)
        torch.testing.assert_close(pearson(-scale * one + shift, other), -pearson(one, other), **close)
    for monotone in (one.exp(), one**3, 2 * one - 9):
        assert torch.equal(spearman(monotone, other), spearman(one, other))
    assert not torch.allclose(pearson(one.exp(), other), pearson(one, other), atol=0.01)
    for scale in (7.0, 1e-200, 1e200):
        torch.testing.assert_close(ssim(scale * one, scale * other), ssim(one, other), **close)
    torch.testing.assert_close(ssim(3 * one, 3 * other, span=30), ssim(one, other, span=10), **close)


def test_a_score_does_not_depend_on_the_batch_or_the_memory_layout():
    one, other = maps(6, levels=4), maps(6, levels=4, seed=1)
    for similarity in ALL:
        whole = similarity(one, other)
        assert whole.dtype == torch.float64
        assert whole.shape == (6,)
        for b in range(6):
            torch.testing.assert_close(
                similarity(one[b : b + 1], other[b : b + 1]), whole[b : b + 1], atol=1e-14, rtol=0
            )
        strided = one.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        torch.testing.assert_close(similarity(strided, other), whole, atol=1e-14, rtol=0)
        torch.testing.assert_close(similarity(one.half(), other.float()), whole, atol=1e-14, rtol=0)
        torch.testing.assert_close(similarity(one.long(), other), whole, atol=1e-14, rtol=0)
        assert similarity(one[:0], other[:0]).shape == (0,)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-40])
def test_the_correlation_with_a_constant_map_is_nan(value):
    """Also for 0.1: rounding makes 0.1 minus the mean of many 0.1 nonzero."""
    one, other = maps(3), maps(3, seed=1)
    one[1] = value
    for similarity in (pearson, spearman):
        assert similarity(one, other).isnan().tolist() == [False, True, False]
        assert similarity(other, one).isnan().tolist() == [False, True, False]
    assert pearson(one[:, :1, :1], other[:, :1, :1]).isnan().all()
    # SSIM is defined: two maps of the same constant are equal.
    flat = torch.full((1, 8, 8), value)
    assert float(ssim(flat, flat)) == pytest.approx(1, abs=1e-14)
    assert ssim(one, other).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pairs_that_are_not_finite_score_nan(value):
    one, other = maps(4), maps(4, seed=1)
    good = [similarity(one, other) for similarity in ALL]
    one[1, 0, 0], other[2, 8, 10] = value, value
    for similarity, before in zip(ALL, good, strict=True):
        found = similarity(one, other)
        assert found.isnan().tolist() == [False, True, True, False]
        assert torch.equal(found[[0, 3]], before[[0, 3]])


def test_wrong_arguments_are_refused():
    one = maps(2, 4, 6)
    for similarity in ALL:
        for wrong in (one[:1], one[:, :3], one[0], one[:, None]):
            with pytest.raises(WhycamError, match=r"pair by pair, \(B, h, w\) with \(B, h, w\), got \(2, 4, 6\) and "):
                similarity(one, wrong)
        with pytest.raises(WhycamError, match=r"got \(4, 6\) and \(4, 6\)"):
            similarity(one[0], one[0])
        with pytest.raises(WhycamError, match=r"got \(2, 0, 6\) and \(2, 0, 6\)"):
            similarity(one[:, :0], one[:, :0])
    with pytest.raises(WhycamError, match="window must be from 2 cells to the map's shorter side, here 4, got 7"):
        ssim(one, one)
    with pytest.raises(WhycamError, match="here 4, got 1"):
        ssim(one, one, window=1)
    for span in (0, -1, math.inf, math.nan):
        with pytest.raises(WhycamError, match=f"a number above 0, got {span}"):
            ssim(one, one, window=3, span=span)
