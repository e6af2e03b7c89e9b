"""The order of pixel removal: exact shares, random ties."""

from __future__ import annotations

import pytest
import torch

from whycam.metrics.faithfulness.pixel_ranks import ranks, removed_counts, removed_pixels


@pytest.mark.parametrize("zeros", [0.0, 0.375, 1.0])
def test_the_exact_share_is_removed_with_any_number_of_ties(zeros, generator):
    maps = torch.rand(6, 16, 16, generator=generator) + 0.1
    maps.view(6, -1)[:, : int(zeros * 256)] = 0
    counts = removed_counts((10, 20, 30, 50, 90), 256)
    assert counts == [26, 51, 77, 128, 230]
    ranked = ranks(maps, torch.rand(6, 16, 16, generator=generator))
    assert torch.equal(ranked.flatten(1).sort(dim=1).values, torch.arange(256).expand(6, -1))
    removed = removed_pixels(ranked, counts)
    assert removed.shape == (6, 2, 5, 16, 16)
    assert torch.equal(removed.flatten(3).sum(dim=3), torch.tensor(counts).expand(6, 2, -1))
    for image in range(6):
        for place, count in enumerate(counts):
            most, least = removed[image, :, place]
            assert maps[image][most].min() >= maps[image][~most].max()
            assert maps[image][least].max() <= maps[image][~least].min()
            if count < 128:
                assert not (most & least).any()
    # In constant maps every position is removed equally often over many draws.
    often = removed_pixels(ranks(torch.zeros(400, 4, 4), torch.rand(400, 4, 4, generator=generator)), [8])[:, 0, 0]
    assert (often.float().mean(dim=0) - 0.5).abs().max() < 0.12


def test_a_map_and_its_negative_have_opposite_ranks(generator):
    maps = torch.randint(4, (5, 8, 8), generator=generator).float()  # full of ties
    ties = torch.rand(5, 8, 8, generator=generator)
    assert torch.equal(ranks(-maps, -ties), 63 - ranks(maps, ties))
