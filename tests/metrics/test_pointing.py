"""Pointing games: maps whose answer is known by hand, and a network of which it is known where it must look."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whycam
from whycam.cam import Method
from whycam.cam.maps import heatmaps, resize
from whycam.errors import WhycamError
from whycam.metrics.localization.grid_pointing import grid_pointing
from whycam.metrics.localization.mosaic import Mosaics, confident, mosaics
from whycam.metrics.localization.pointing_game import cell_shares, energy_pointing, pointing_game


def regions(count, side, top, left, height, width):
    inside = torch.zeros(count, side, side, dtype=torch.bool)
    inside[:, top : top + height, left : left + width] = True
    return inside


def test_the_largest_value_decides():
    maps = torch.full((3, 4, 4), -1.0)
    maps[0, 1, 2] = 0.5
    maps[1, 3, 3] = 0.5
    maps[2, 1, 2] = -0.5  # the least evidence against is a place as well
    inside = regions(3, 4, 0, 2, 2, 2)
    assert pointing_game(maps, inside).tolist() == [True, False, True]
    assert pointing_game(maps, ~inside).tolist() == [False, True, False]
    # At another size the place stays where it was.
    larger = inside.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert pointing_game(maps, larger).tolist() == [True, False, True]


def test_a_tie_points_into_a_region_if_all_of_it_does():
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 1] = maps[0, 1, 2] = 2
    maps[1, 1, 1] = maps[1, 3, 3] = 2
    inside = regions(3, 4, 1, 1, 1, 3)
    assert pointing_game(maps, inside).tolist() == [True, False, False]  # the blank one points nowhere
    for axes in ((1,), (2,), (1, 2)):
        assert pointing_game(maps.flip(axes), inside.flip(axes)).tolist() == [True, False, False]


def test_the_share_of_positive_evidence():
    maps = torch.tensor([[[3.0, -9], [1, 0]], [[-1, -2], [0, -1]], [[0, 0], [0, 0]], [[-1, 1e-8], [0, 0]]])
    inside = torch.tensor([[[True, True], [False, False]]]).expand(4, 2, 2)
    assert energy_pointing(maps, inside).tolist() == [0.75, 0, 0, 0]  # the last is rounding
    # No unit matters, however small.
    assert energy_pointing(1e-30 * maps.double(), inside).tolist() == [0.75, 0, 0, 0]
    assert energy_pointing(maps, inside).dtype == torch.float64


def test_shares_are_those_of_the_heatmap_and_add_up(generator):
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


def test_cells_by_hand():
    maps = torch.zeros(3, 4, 6)
    maps[0, 0, 0], maps[0, 1, 2], maps[0, 0, 3], maps[0, 3, 5] = 1, 2, 4, 9
    maps[1] = -1
    assert cell_shares(maps, 2).tolist() == [[3 / 16, 4 / 16, 0, 9 / 16], [0.0] * 4, [0.0] * 4]
    assert cell_shares(maps[:, :1], 1).tolist() == [[1], [0], [0]]
    # What the grid does not divide is resized to the next size that it does.
    four = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(cell_shares(four, 3), cell_shares(resize(four, (6, 6)), 3))
    torch.testing.assert_close(cell_shares(four, 3), cell_shares(four, 3, size=(6, 6)))
    # Evenly spread evidence is chance.
    torch.testing.assert_close(cell_shares(torch.ones(1, 4, 4), 3), torch.full((1, 9), 1 / 9, dtype=torch.float64))


def test_what_points_nowhere_is_one_sentence():
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
    with pytest.raises(WhycamError, match="32×30 has no 4×4 equal cells: give multiples of 4"):
        cell_shares(maps, 4, size=(32, 30))


def numbered(count, channels=2, side=3):
    """Images that say which they are."""
    return (torch.arange(count) / count).view(-1, 1, 1, 1).expand(count, channels, side, side + 1)


def test_a_mosaic_is_its_images_in_their_places():
    images = torch.rand(30, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    made = mosaics(images, [i % 6 for i in range(30)], grid=2, count=12)
    assert made.images.shape == (12, 3, 10, 8)
    assert made.members.shape == made.classes.shape == (12, 4)
    assert made.grid == 2
    for mosaic, members in zip(made.images, made.members.tolist(), strict=True):
        for cell, member in enumerate(members):
            row, column = 5 * (cell // 2), 4 * (cell % 2)
            assert torch.equal(mosaic[:, row : row + 5, column : column + 4], images[member])


def test_mosaics_are_drawn_evenly_without_a_class_twice():
    labels = torch.tensor([7, 3, 1, 0, 5] * 8)
    made = mosaics(numbered(40), labels, grid=2, count=400)
    assert torch.equal(made.classes, labels[made.members])
    assert all(len(set(row)) == 4 for row in made.classes.tolist())
    often = torch.stack([(made.classes == kind).float().mean(dim=0) for kind in (0, 1, 3, 5, 7)])
    assert (often - 0.2).abs().max() < 0.08  # each class in each place
    assert made.members.unique().tolist() == list(range(40))
    assert len({tuple(row) for row in made.members.tolist()}) > 390


def test_the_seed_alone_decides_what_is_drawn():
    labels = torch.arange(40) % 10
    made = mosaics(numbered(40), labels, count=5, seed=3)
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(mosaics(numbered(40), labels.numpy(), count=9, seed=3).members[:5], made.members)
    assert not torch.equal(mosaics(numbered(40), labels, count=5, seed=4).members, made.members)
    assert torch.equal(torch.get_rng_state(), state)
    # Nothing is left to the draw where there are as many images as cells.
    assert mosaics(numbered(9), range(9), count=1).members.sort().values.tolist() == [list(range(9))]


def test_confident_ones_are_right_and_sure_and_the_surest_come_first():
    logits = torch.tensor([[1.0, 0], [4, 0], [0, 2], [3, 0], [0, 0]])
    labels = [0, 0, 0, 0, 1]
    assert confident(logits, labels).tolist() == [1, 3, 0]
    assert confident(logits, labels, 0.9).tolist() == [1, 3]
    assert confident(logits + 100, torch.tensor(labels), 0.9).tolist() == [1, 3]  # a logit means nothing by itself
    assert confident(logits, labels, 1).tolist() == []
    assert confident(logits[4:], [0]).tolist() == [0]  # exactly at the threshold


def test_what_makes_no_mosaic_is_one_sentence():
    images, labels = numbered(12), torch.arange(12) % 6
    cases = [
        (
            (images, labels),
            {},
            "3×3 needs images of 9 different classes, and there are 6: give more images, or a small",
        ),
        ((images[:0], labels[:0]), {}, "9 different classes, and there are 0"),
        ((images, labels[:5]), {}, r"classes must be \(N,\) whole numbers, one for each of 12 images, got \(5,\)"),
        ((images, labels.float()), {}, r"got \(12,\) float32"),
        ((images * 2, labels), {}, r"floats in \[0, 1\]"),
        ((images[0], labels), {}, r"must be \(B, C, H, W\)"),
        ((images, labels), {"grid": 1}, "at least 2 cells a side, and there is at least 1, got grid=1 and count=100"),
        ((images, labels), {"grid": 2, "count": 0}, "count=0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            mosaics(*arguments, **options)
    with pytest.raises(WhycamError, match=r"got \(3, 2\) and \(2,\)"):
        confident(torch.rand(3, 2), [0, 1])
    with pytest.raises(WhycamError, match=r"threshold is a probability, from 0 to 1, got 50"):
        confident(torch.rand(2, 2), [0, 1], 50)


class Colors(nn.Module):
    """The k-th logit is the mean of the k-th channel, and nothing else."""

    def __init__(self, kinds=9):
        super().__init__()
        self.conv = nn.Conv2d(kinds, kinds, 1, bias=False)
        self.conv.weight.data = torch.eye(kinds)[:, :, None, None]
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.conv(x).relu().mean((2, 3))


def colored(kinds=9, each=2, side=4):
    """Images whose class is the one channel that is not black."""
    labels = torch.arange(kinds * each) % kinds
    images = torch.zeros(len(labels), kinds, side, side)
    images[torch.arange(len(labels)), labels] = (
        torch.rand(len(labels), side, side, generator=torch.Generator().manual_seed(0)).add(0.1).clamp(max=1)
    )
    return images, labels


@pytest.mark.parametrize("grid", [2, 3])
def test_a_network_that_can_look_nowhere_else_scores_one(grid):
    made = mosaics(*colored(), grid=grid, count=7)
    model = Colors()
    found = grid_pointing(model, made, "conv", ["gradcam", "layercam"], preprocess=None, batch_size=3)
    assert found.means() == {("gradcam", "conv"): 1, ("layercam", "conv"): 1}
    assert found.chance == 1 / grid**2
    for scores in found.scores.values():
        assert scores.shape == (7, grid**2)
        assert scores.dtype == torch.float64
        assert scores.eq(1).all()
    # Asked about the class of another cell, it looks there.
    wrong = Mosaics(made.images, made.members, made.classes.roll(1, dims=1))
    assert grid_pointing(model, wrong, "conv", preprocess=None).scores["gradcam", "conv"].eq(0).all()


def test_one_pass_a_batch_serves_all_cells_and_the_batch_does_not_matter():
    made, model = mosaics(*colored(), count=7), Colors()
    whole = grid_pointing(model, made, "conv", ["gradcam", "hirescam"], preprocess=None)
    assert model.passes == 1
    parts = grid_pointing(model, made, "conv", ["gradcam", "hirescam"], preprocess=None, batch_size=2)
    assert model.passes == 5
    for key, scores in whole.scores.items():
        torch.testing.assert_close(parts.scores[key], scores)


def test_a_map_that_is_the_same_for_all_classes_scores_exactly_chance():
    made = mosaics(*colored(), count=4)
    found = grid_pointing(Colors(), made, "conv", ["eigencam", "random", "sobel", "center"], preprocess=None)
    for key, scores in found.scores.items():
        blank = scores.sum(dim=1) == 0  # nothing positive
        assert scores.mean(dim=1)[~blank].tolist() == pytest.approx([found.chance] * int((~blank).sum())), key
        assert not blank.all()
    corner = Method("corner", "Corner", "", "", lambda trace: (torch.arange(144) == 0).float().view(1, 12, 12)
                    .expand(len(trace.activations), 12, 12), needs=frozenset(), scope="input")  # fmt: skip
    scores = grid_pointing(Colors(), made, methods=corner, preprocess=None).scores["corner", "input"]
    assert scores.tolist() == [[1.0] + [0.0] * 8] * 4


def test_preprocessing_without_resizing():
    images = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    for channels, count in (("RGB", 3), ("BGR", 3), ("L", 1)):
        spec = whycam.Preprocess((0.4,) * count, (0.2,) * count, (8, 6), channels)
        other = whycam.Preprocess((0.4,) * count, (0.2,) * count, (5, 5), channels)
        assert torch.equal(other.normalize(images), spec(images))
        assert torch.equal(other.normalize(images.mul(255).byte()), spec(images.mul(255).byte()))
    with pytest.raises(WhycamError, match=r"must lie in \[0, 1\] before normalization"):
        spec.normalize(2 * images)


class Flat(nn.Module):
    """Takes one size and no other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(9, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 9)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


class Failing(Colors):
    always = False

    def forward(self, x):
        if self.always or torch.is_grad_enabled():
            raise RuntimeError("out of luck")
        return super().forward(x)


def test_what_cannot_play_is_one_sentence(spec):
    made = mosaics(*colored(), count=2)
    with pytest.raises(WhycamError, match=r"takes images of 4×4 and none of 12×12, as the mosaics are: the game needs"):
        grid_pointing(Flat(), made, "conv", preprocess=None)
    with pytest.raises(WhycamError, match=r"have 9 channel\(s\), the model's first convolution takes 8"):
        grid_pointing(Colors(8), made, "conv", preprocess=None)
    failing = Failing()
    for failing.always in (False, True):
        with pytest.raises(RuntimeError, match="out of luck"):  # the size is not to blame
            grid_pointing(failing, made, "conv", preprocess=None)
    with pytest.raises(WhycamError, match="target class 9 does not exist"):
        grid_pointing(Colors(), Mosaics(made.images, made.members, made.classes + 1), "conv", preprocess=None)
    with pytest.raises(WhycamError, match="batch_size must be at least 1, got 0"):
        grid_pointing(Colors(), made, "conv", preprocess=None, batch_size=0)
    gray = mosaics(torch.rand(4, 3, 32, 32), range(4), grid=2, count=1)
    with pytest.raises(WhycamError, match=r"makes 32×32 of mosaics of 64×64: .*spec.preprocess.normalize say"):
        grid_pointing(Flat(), gray, "conv", preprocess=spec.preprocess)


def test_a_vision_transformer_with_a_table_of_positions_cannot_play():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=16, patch_size=4, num_labels=4)  # fmt: skip
    made = mosaics(torch.rand(4, 3, 16, 16), range(4), grid=2, count=1)
    with pytest.raises(WhycamError, match=r"takes images of 16×16 and none of 32×32"):
        grid_pointing(transformers.ViTForImageClassification(config), made, preprocess=None)


def test_grad_cam_of_the_real_network_finds_the_cells(model, spec):
    source = whycam.open_source("bundled")
    images = source.read(range(120)).float() / 255
    with torch.no_grad():
        sure = confident(model(spec.preprocess(images)), source.labels[:120])
    made = mosaics(images[sure], torch.from_numpy(source.labels)[sure], count=6, seed=1)
    before = [module.training for module in model.modules()]
    found = grid_pointing(
        model, made, "layer4[-1]", ["gradcam", "random", "sobel", "center"], preprocess=spec.preprocess.normalize
    )
    assert [module.training for module in model.modules()] == before
    means = found.means()
    assert means["gradcam", "layer4[-1]"] > 4 * found.chance
    for control in (("random", "layer4[-1]"), ("sobel", "input"), ("center", "input")):
        assert means[control] == pytest.approx(found.chance, rel=1e-6)
