"""The Grid Pointing Game: on a network that can look only at the right cell, and on the bundled network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whycam
from whycam.cam import Method
from whycam.errors import WhycamError
from whycam.metrics.localization.grid_pointing import grid_pointing
from whycam.metrics.localization.mosaic import Mosaics, confident, mosaics


class Colors(nn.Module):
    """The k-th logit is the mean of the k-th channel."""

    def __init__(self, kinds=9):
        super().__init__()
        self.conv = nn.Conv2d(kinds, kinds, 1, bias=False)
        self.conv.weight.data = torch.eye(kinds)[:, :, None, None]
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.conv(x).relu().mean((2, 3))


def colored(kinds=9, each=2, side=4):
    """Images in which only one channel is not black: the class."""
    labels = torch.arange(kinds * each) % kinds
    images = torch.zeros(len(labels), kinds, side, side)
    images[torch.arange(len(labels)), labels] = (
        torch.rand(len(labels), side, side, generator=torch.Generator().manual_seed(0)).add(0.1).clamp(max=1)
    )
    return images, labels


@pytest.mark.parametrize("grid", [2, 3])
def test_a_network_that_can_use_only_the_right_cell_scores_1(grid):
    made = mosaics(*colored(), grid=grid, count=7)
    model = Colors()
    found = grid_pointing(model, made, "conv", ["gradcam", "layercam"], preprocess=None, batch_size=3)
    assert found.means() == {("gradcam", "conv"): 1, ("layercam", "conv"): 1}
    assert found.chance == 1 / grid**2
    for scores in found.scores.values():
        assert scores.shape == (7, grid**2)
        assert scores.dtype == torch.float64
        assert scores.eq(1).all()
    # For the class of another cell, it points at that cell.
    wrong = Mosaics(made.images, made.members, made.classes.roll(1, dims=1))
    assert grid_pointing(model, wrong, "conv", preprocess=None).scores["gradcam", "conv"].eq(0).all()


def test_one_forward_pass_serves_all_cells_of_a_batch():
    made, model = mosaics(*colored(), count=7), Colors()
    whole = grid_pointing(model, made, "conv", ["gradcam", "hirescam"], preprocess=None)
    assert model.passes == 1
    parts = grid_pointing(model, made, "conv", ["gradcam", "hirescam"], preprocess=None, batch_size=2)
    assert model.passes == 5
    for key, scores in whole.scores.items():
        torch.testing.assert_close(parts.scores[key], scores)


def test_a_map_that_ignores_the_class_scores_chance():
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


def test_normalize_does_not_resize():
    images = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    for channels, count in (("RGB", 3), ("BGR", 3), ("L", 1)):
        spec = whycam.Preprocess((0.4,) * count, (0.2,) * count, (8, 6), channels)
        other = whycam.Preprocess((0.4,) * count, (0.2,) * count, (5, 5), channels)
        assert torch.equal(other.normalize(images), spec(images))
        assert torch.equal(other.normalize(images.mul(255).byte()), spec(images.mul(255).byte()))
    with pytest.raises(WhycamError, match=r"must lie in \[0, 1\] before normalization"):
        spec.normalize(2 * images)


class FixedSize(nn.Module):
    """Takes images of one size only."""

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


def test_wrong_arguments_are_refused(spec):
    made = mosaics(*colored(), count=2)
    with pytest.raises(
        WhycamError, match=r"takes images of 4×4 but not of 12×12, the size of the mosaics: this metric"
    ):
        grid_pointing(FixedSize(), made, "conv", preprocess=None)
    with pytest.raises(WhycamError, match=r"have 9 channel\(s\), the model's first convolution takes 8"):
        grid_pointing(Colors(8), made, "conv", preprocess=None)
    failing = Failing()
    for failing.always in (False, True):
        with pytest.raises(RuntimeError, match="out of luck"):  # the size is not the reason
            grid_pointing(failing, made, "conv", preprocess=None)
    with pytest.raises(WhycamError, match="target class 9 does not exist"):
        grid_pointing(Colors(), Mosaics(made.images, made.members, made.classes + 1), "conv", preprocess=None)
    with pytest.raises(WhycamError, match="the batch size must be at least 1, got 0"):
        grid_pointing(Colors(), made, "conv", preprocess=None, batch_size=0)
    gray = mosaics(torch.rand(4, 3, 32, 32), range(4), grid=2, count=1)
    with pytest.raises(WhycamError, match=r"turns mosaics of 64×64 into 32×32: give a function that only normalizes"):
        grid_pointing(FixedSize(), gray, "conv", preprocess=spec.preprocess)


def test_a_vision_transformer_with_fixed_positions_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=16, patch_size=4, num_labels=4)  # fmt: skip
    made = mosaics(torch.rand(4, 3, 16, 16), range(4), grid=2, count=1)
    with pytest.raises(WhycamError, match=r"takes images of 16×16 but not of 32×32"):
        grid_pointing(transformers.ViTForImageClassification(config), made, preprocess=None)


def test_on_the_bundled_network_grad_cam_finds_the_cells(model, spec):
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
