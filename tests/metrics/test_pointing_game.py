"""Pointing games on maps whose answer is known by hand."""

from __future__ import annotations

import pytest
import torch

from whycam.cam.maps import heatmaps, resize
from whycam.errors import WhycamError
from whycam.metrics.localization.pointing_game import cell_shares, energy_pointing, pointing_game


def regions(count, side, top, left, height, width):
    inside = torch.zeros(count, side, side, dtype=torch.bool)
    inside[:, top : top + height, left : left + width] = True
    return inside


def test_the_pointing_game_looks_at_the_largest_value():
    maps = torch.full((3, 4, 4), -1.0)
    maps[0, 1, 2] = 0.5
    maps[1, 3, 3] = 0.5
    maps[2, 1, 2] = -0.5  # the largest value may be negative
    inside = regions(3, 4, 0, 2, 2, 2)
    assert pointing_game(maps, inside).tolist() == [True, False, True]
    assert pointing_game(maps, ~inside).tolist() == [False, True, False]
    # The position stays the same at another size.
    larger = inside.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert pointing_game(maps, larger).tolist() == [True, False, True]


def test_of_several_largest_values_all_must_lie_inside():
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 1] = maps[0, 1, 2] = 2
    maps[1, 1, 1] = maps[1, 3, 3] = 2
    inside = regions(3, 4, 1, 1, 1, 3)
    assert pointing_game(maps, inside).tolist() == [True, False, False]  # the last map is constant and misses
    for axes in ((1,), (2,), (1, 2)):
        assert pointing_game(maps.flip(axes), inside.flip(axes)).tolist() == [True, False, False]


def test_energy_pointing_is_the_share_of_positive_evidence():
    maps = torch.tensor([[[3.0, -9], [1, 0]], [[-1, -2], [0, -1]], [[0, 0], [0, 0]], [[-1, 1e-8], [0, 0]]])
    inside = torch.tensor([[[True, True], [False, False]]]).expand(4, 2, 2)
    assert energy_pointing(maps, inside).tolist() == [
        0.75,
        0,
        0,
        0,
    ]  # the positive evidence of the last map is a rounding error
    # The unit does not matter, however small.
    assert energy_pointing(1e-30 * maps.double(), inside).tolist() == [0.75, 0, 0, 0]
    assert energy_pointing(maps, inside).dtype == torch.float64


def test_shares_equal_those_of_heatmaps_and_sum_to_1(generator):
    maps = torch.randn(6, 5, 5, generator=generator)
    inside = torch.rand(6, 24, 24, generator=generator) < 0.4
    shown = heatmaps(maps.double(), (24, 24))
    expected = (shown * inside).sum(dim=(1, 2)) / shown.sum(dim=(1, 2))
    torch.testing.assert_close(energy_pointing(maps, inside), expected)
    torch.testing.assert_close(energy_pointing(maps, ~inside), 1 - expected)
    assert energy_pointing(maps, torch.ones_like(inside)).tolist() == pytest.approx([1.0] * 6)
    cells = cell_shares(maps, 3, size=(24, 24))
    for cell in range(9):
        there = regions(6, 24, 8 * (cell // 3), 8 * (cell % 3), 8, 8)
        torch.testing.assert_close(cells[:, cell], energy_pointing(maps, there))
    torch.testing.assert_close(cells.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_cell_shares_by_hand():
    maps = torch.zeros(3, 4, 6)
    maps[0, 0, 0], maps[0, 1, 2], maps[0, 0, 3], maps[0, 3, 5] = 1, 2, 4, 9
    maps[1] = -1
    assert cell_shares(maps, 2).tolist() == [[3 / 16, 4 / 16, 0, 9 / 16], [0.0] * 4, [0.0] * 4]
    assert cell_shares(maps[:, :1], 1).tolist() == [[1], [0], [0]]
    # A size that is not a multiple of the grid is rounded up to one.
    four = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(cell_shares(four, 3), cell_shares(resize(four, (6, 6)), 3))
    torch.testing.assert_close(cell_shares(four, 3), cell_shares(four, 3, size=(6, 6)))
    # A constant map scores chance.
    torch.testing.assert_close(cell_shares(torch.ones(1, 4, 4), 3), torch.full((1, 9), 1 / 9, dtype=torch.float64))


def test_wrong_arguments_are_refused():
    maps, inside = torch.rand(2, 4, 4), regions(2, 8, 0, 0, 4, 4)
    broken = maps.clone()
    broken[1, 0, 0] = torch.nan
    for game in (pointing_game, energy_pointing):
        with pytest.raises(WhycamError, match="map 1 holds NaN or infinity"):
            game(broken, inside)
        with pytest.raises(WhycamError, match=r"bool, one region for each of 2 maps, got \(1, 8, 8\) bool"):
            game(maps, inside[:1])
        with pytest.raises(WhycamError, match=r"got \(2, 8, 8\) float32"):
            game(maps, inside.float())
        with pytest.raises(WhycamError, match=r"maps must be \(B, h, w\), got \(4, 4\)"):
            game(maps[0], inside)
    with pytest.raises(WhycamError, match=r"maps must be \(B, h, w\), got \(2, 4, 0\)"):
        cell_shares(maps[:, :, :0], 2)
    with pytest.raises(WhycamError, match="map 1 holds NaN"):
        cell_shares(broken, 2)
    with pytest.raises(WhycamError, match="at least 1, got 0"):
        cell_shares(maps, 0)
    with pytest.raises(WhycamError, match="32×30 has no 4×4 equal cells: give a size in multiples of 4"):
        cell_shares(maps, 4, size=(32, 30))
