"""Targets that read a network's whole output: for every method the same maps as targets that read its logits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from networks import TupleOutput
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import METHODS

# CAM and Finer-CAM need a class as the target; the controls ignore the target.
ALL = sorted(set(METHODS) - {"finercam", "cam", "sobel", "center", "random"})
QUICK = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
         "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip
COMBINED = ["augmented(gradcam)", "noisy(hirescam, n=2)", "eigen(gradcam)", "augmented(ablationcam)", "noisy(scorecam)"]


@dataclass
class Answer:
    note: str
    logits: torch.Tensor
    extra: dict


class InADataclass(TupleOutput):
    def forward(self, x):
        found = super().forward(x)
        return Answer("not a tensor", found["logits"], {"features": found["features"]})


class InATuple(TupleOutput):
    def forward(self, x):
        found = super().forward(x)
        return (found["logits"],), found["features"]


class LogitsOnly(TupleOutput):
    def forward(self, x):
        return super().forward(x)["logits"]


class OnePerImage(TupleOutput):
    """A list with a mapping for each image, and no tensor that begins with the batch."""

    def forward(self, x):
        found = super().forward(x)
        return [{"name": "image", "logits": logits} for logits in found["logits"]]


KINDS = {
    "dict": (TupleOutput, lambda output: output["logits"]),
    "dataclass": (InADataclass, lambda output: output.logits),
    "tuple": (InATuple, lambda output: output[0][0]),
    "tensor": (LogitsOnly, lambda output: output),
    "list": (OnePerImage, lambda output: torch.stack([entry["logits"] for entry in output])),
}


def make(kind, batch=3):
    torch.manual_seed(0)
    return kind().double().eval(), torch.randn(batch, 3, 8, 8, dtype=torch.float64)


class ClassPerImage:
    """A user's target, written after the description in whycam.cam.targets.classification."""

    wants_output = True

    def __init__(self, read, classes=None):
        self.read, self.classes = read, classes

    def freeze(self, output):
        return self if self.classes is not None else ClassPerImage(self.read, self.read(output).argmax(1))

    def at(self, rows):
        return ClassPerImage(self.read, self.classes[rows])

    def mirrored(self, _width):
        return self

    def __call__(self, output):
        logits = self.read(output)
        return logits[torch.arange(len(logits)), self.classes]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_method_gives_the_map_of_the_class(kind):
    network, read = KINDS[kind]
    model, images = make(network)
    plain, _ = make(LogitsOnly)
    methods = [QUICK.get(name, name) for name in ALL] + COMBINED
    # These two change the target only if it is a class (to its probability, to its residual softmax).
    methods = [name for name in methods if name not in ("reciprocam", "shapleycam")]
    predicted = plain(images).argmax(1)
    for target, expected in [(ClassPerImage(read), None), (ClassPerImage(read, torch.tensor([4, 0, 2])), [4, 0, 2])]:
        one = whycam.explain(model, images, "conv", methods, target)
        other = whycam.explain(plain, images, "conv", methods, predicted if expected is None else expected)
        for key, raw in other.maps.items():
            scale = max(1.0, float(raw.abs().max()))
            torch.testing.assert_close(one.maps[key], raw, rtol=0, atol=1e-11 * scale, msg=str(key))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", ["reciprocam", "shapleycam"])
def test_methods_that_retarget_classes_leave_other_targets_unchanged(kind, method):
    network, read = KINDS[kind]
    model, images = make(network)
    plain, _ = make(LogitsOnly)
    actual = whycam.explain(model, images, "conv", method, ClassPerImage(read, torch.tensor([4, 0, 2]))).map()
    column = torch.tensor([4, 0, 2])
    expected = whycam.explain(plain, images, "conv", method, lambda logits: logits[torch.arange(3), column]).map()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_whole_output(kind):
    network, read = KINDS[kind]
    model, images = make(network)
    plain, _ = make(LogitsOnly)
    target = whycam.WholeOutput(lambda output: read(output)[:, 1])
    methods = ["gradcam", "ablationcam", "scorecam", "fullgrad", "noisy(gradcam, n=2)"]
    one = whycam.explain(model, images, "conv", methods, target)
    for key, raw in whycam.explain(plain, images, "conv", methods, 1).maps.items():
        torch.testing.assert_close(one.maps[key], raw, rtol=0, atol=1e-11)
    with pytest.raises(WhycamError, match="Finer-CAM compares a class with those most like it"):
        whycam.explain(model, images, "conv", "finercam", target)


def test_list_of_targets_that_read_logits_and_whole_outputs():
    model, images = make(TupleOutput)
    plain, _ = make(LogitsOnly)
    mixed = [whycam.WholeOutput(lambda output: output["logits"][:, 4]), 0, None]
    expected = [4, 0, int(plain(images)[2].argmax())]
    methods = ["gradcam", "ablationcam", "noisy(hirescam, n=2)"]
    one = whycam.explain(model, images, "conv", methods, mixed)
    for key, raw in whycam.explain(plain, images, "conv", methods, expected).maps.items():
        torch.testing.assert_close(one.maps[key], raw, rtol=0, atol=1e-11)
    with pytest.raises(WhycamError, match="2 targets are given for 3 images"):
        whycam.explain(model, images, "conv", "gradcam", mixed[:2])


def test_score_from_other_outputs_than_the_logits():
    model, images = make(TupleOutput)
    target = whycam.WholeOutput(lambda output: output["features"].square().mean((1, 2, 3)))
    explained = whycam.explain(model, images, "conv", ["gradcam", "ablationcam", "reciprocam"], target)
    features = model(images)["features"].detach()
    torch.testing.assert_close(explained.scores["target"], features.square().mean((1, 2, 3)))
    # Computed by hand: without a channel, the score loses the channel's term.
    terms = features.square().mean((2, 3)) / features.shape[1]
    activations = model.conv(images).detach()
    score = explained.scores["target"]
    expected = torch.einsum("bchw,bc->bhw", activations, terms / score.abs()[:, None])
    torch.testing.assert_close(explained.map("ablationcam"), expected, rtol=0, atol=1e-12)


def test_targets_without_at_and_mirrored():
    model, images = make(TupleOutput)

    def second(output):
        return output["logits"][:, 1]

    second.wants_output = True
    # A single pass needs neither, and copies of the whole batch need no `at`.
    expected = whycam.explain(model, images, "conv", ["gradcam", "noisy(gradcam, n=2)"], 1)
    explained = whycam.explain(model, images, "conv", ["gradcam", "noisy(gradcam, n=2)"], second)
    for key, raw in expected.maps.items():
        torch.testing.assert_close(explained.maps[key], raw)
    for method in ("ablationcam", "scorecam", "reciprocam", "inputgradient", "noisy(ablationcam, n=2)"):
        with pytest.raises(WhycamError, match=r"second reads the network's whole output and has no at\(rows\)"):
            whycam.explain(model, images, "conv", method, second)
    for target in (second, whycam.WholeOutput(second), [whycam.WholeOutput(second)] * 3):
        with pytest.raises(WhycamError, match=r"augmented mirrors the images, and target .* has no mirrored\(width\)"):
            whycam.explain(model, images, "conv", "augmented(gradcam)", target)
    second.mirrored = lambda _width: second
    assert whycam.explain(model, images, "conv", "augmented(gradcam)", second).map().isfinite().all()

    def wrong(output):
        return output["logits"]

    wrong.wants_output = True
    with pytest.raises(WhycamError, match=r"target wrong must return one score per image, shape \(3,\)"):
        whycam.explain(model, images, "conv", "gradcam", wrong)


def test_segmentation_mask_is_mirrored_with_the_image():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.last = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, x):
            return self.last(self.conv(x).relu())

    model, images = make(Dense)
    mask = torch.zeros(3, 8, 8)
    mask[0, :4, :3], mask[1, 2:], mask[2, :, 6:] = 1, 1, 1
    actual = whycam.explain(model, images, "conv", "augmented(hirescam)", whycam.Segmentation(2, mask.numpy())).map()
    runs = []
    for factor in (0.9, 1.0, 1.1):
        for mirror in (lambda tensor: tensor, lambda tensor: tensor.flip(-1)):
            target = whycam.Segmentation(2, mirror(mask))
            runs.append(mirror(whycam.explain(model, factor * mirror(images), "conv", "hirescam", target).map()))
    torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)
    with pytest.raises(WhycamError, match=r"augmented mirrors the images, and target <lambda> has no mirrored"):
        whycam.explain(model, images, "conv", "augmented(gradcam)", lambda out: out[:, 1].flatten(1).sum(1))
