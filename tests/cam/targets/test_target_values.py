"""Values of targets: one for all images or one per image, for every method; other values are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whycam
from whycam import WhycamError

METHODS = ["gradcam", "scorecam", "ablationcam", "augmented(gradcam)", "noisy(gradcam, n=2)"]


class Network(nn.Module):
    """Returns ``answer(logits, dense)`` for (B, 4) logits and a (B, 4, H, W) segmentation."""

    def __init__(self, answer):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.answer = answer

    def forward(self, x):
        dense = self.last(self.conv(x).relu())
        return self.answer(dense.mean((2, 3)), dense)


ANSWERS = {
    "(B,)": lambda logits, _: logits[:, 2],
    "(B, 1)": lambda logits, _: logits[:, 2:3],
    "(B, K)": lambda logits, _: logits,
    "(B, K, H, W)": lambda _, dense: dense,
}


def explained(answer, target, methods="gradcam"):
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return whycam.explain(Network(ANSWERS[answer]).eval(), images, "conv", methods, target)


@pytest.mark.parametrize(
    ("answer", "target", "message"),
    [
        ("(B, K)", whycam.Binary(), r"Binary explains a single logit, .* gives \(4, 4\): give a class's index or name"),
        ("(B, K, H, W)", whycam.Binary(), r"Binary explains .* gives \(4, 4, 8, 8\): .* \(whycam.Segmentation for"),
        ("(B,)", whycam.Output(7), "target class 7 does not exist; this model has classes 0 to 0"),
        ("(B, 1)", whycam.Output(7), "target class 7 does not exist; this model has classes 0 to 0"),
        ("(B, 1)", whycam.Finer(0), "Finer compares a class with those most like it, and this model has one class"),
        ("(B, K)", whycam.Margin(0, 1.5), r"a target class is a whole number, .* got 1\.5"),
        ("(B, K)", whycam.cam.ClassScore([[0, 1, 2, 3]]), r"a target class is a whole number, .* got \[\[0, 1"),
        (
            "(B, K, H, W)",
            whycam.Segmentation(1, torch.ones(3, 8, 8)),
            r"the mask is \(3, 8, 8\) for 4 images: give one \(H, W\) for all, or one per image",
        ),
        ("(B, K, H, W)", whycam.Segmentation(1, torch.ones(3, 4, 4)), r"the mask is \(3, 4, 4\), .*: resize one"),
        ("(B, K, H, W)", whycam.Segmentation(1, torch.ones(1, 1, 8, 8)), r"the mask is \(1, 1, 8, 8\) for 4 images"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_the_output_are_refused(answer, target, message):
    with pytest.raises(WhycamError, match=message):
        explained(answer, target)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None])
def test_bad_counts_of_finer_are_refused(count):
    with pytest.raises(WhycamError, match="count of Finer is a whole number of at least 1, not"):
        whycam.Finer(0, count=count)


@pytest.mark.parametrize("index", [[1, 2, 3, 0], 1.5, True, None, torch.tensor([1, 2])])
def test_bad_classes_of_segmentation_are_refused(index):
    with pytest.raises(WhycamError, match=r"Segmentation explains one class, .* give a list of targets"):
        whycam.Segmentation(index)


def test_class_of_segmentation_may_be_any_integer_type():
    expected = explained("(B, K, H, W)", whycam.Segmentation(1)).map()
    assert torch.equal(explained("(B, K, H, W)", whycam.Segmentation(torch.tensor(1))).map(), expected)
    each = explained("(B, K, H, W)", [whycam.Segmentation(index) for index in (1, 2, 3, 1)]).map()
    torch.testing.assert_close(each[0], expected[0])


def test_value_for_all_images_with_and_without_batch_axis():
    embedding, mask = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.zeros(8, 8)
    mask[2:5, 3:] = 1
    for answer, targets in (
        ("(B, K)", [whycam.Similarity(e) for e in (embedding, embedding[None], embedding.expand(4, 4))]),
        ("(B, K, H, W)", [whycam.Segmentation(1, m) for m in (mask, mask[None], mask.expand(4, 8, 8))]),
    ):
        methods = METHODS if answer == "(B, K)" else [name for name in METHODS if "augmented" not in name]
        expected, *others = (explained(answer, target, methods) for target in targets)
        for other in others:
            for key, raw in expected.maps.items():
                torch.testing.assert_close(other.maps[key], raw, msg=str(key))


@pytest.mark.parametrize("answer", ["(B,)", "(B, 1)"])
def test_output_and_binary_on_a_single_output(answer):
    one, other = (explained(answer, target) for target in (whycam.Output(), whycam.Binary()))
    assert torch.equal(one.map(), other.map())
    assert torch.equal(explained(answer, whycam.Binary(positive=False)).scores["target"], -one.scores["target"])
