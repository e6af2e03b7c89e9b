"""Class names in targets: how they are looked up, and errors for unknown or incomplete names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import InPlace
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import Explainer
from whycam.cam.methods.fullgrad import full_gradients
from whycam.cam.targets.class_names import ClassNames, class_index

NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InPlace().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("named", "numbered"),
    [
        ("cat", 2),
        ("Cat", 2),
        (["cat", "ant", "elk"], [2, 0, 4]),
        (("cat", 0, None), [2, 0, None]),
        (np.array(["cat", "ant", "elk"]), torch.tensor([2, 0, 4])),
        (np.array([2, 0, 4], dtype=np.int32), [2, 0, 4]),
        (np.int64(2), 2),
        (np.array(2), 2),
        ([np.int64(2), torch.tensor(0), "elk"], [2, 0, 4]),
        (whycam.ClassScore("dog"), whycam.ClassScore(3)),
        (whycam.ClassScore(["dog", "bee", "cat"]), whycam.ClassScore(torch.tensor([3, 1, 2]))),
        (whycam.ClassScore(np.array([3, 1, 2])), whycam.ClassScore(torch.tensor([3, 1, 2]))),
        (whycam.Margin("cat", "dog"), whycam.Margin(2, 3)),
        (whycam.Margin("cat", ["dog", "ant", "bee"]), whycam.Margin(2, torch.tensor([3, 0, 1]))),
        (whycam.Probability("elk"), whycam.Probability(4)),
        (whycam.LogProbability("elk"), whycam.LogProbability(4)),
        (whycam.ReST("elk"), whycam.ReST(4)),
        (whycam.Finer("bee", alpha=1.0), whycam.Finer(1, alpha=1.0)),
        ([whycam.Margin("cat", "dog"), "bee", None], [whycam.Margin(2, 3), 1, None]),
    ],
)
def test_targets_by_name_equal_targets_by_index(network, images, named, numbered):
    # Ablation-CAM scores parts of the batch.
    methods = ["gradcam", "ablationcam"]
    one, other = (
        whycam.explain(network, images, "norm", methods, target, classes=NAMES) for target in (named, numbered)
    )
    for key, raw in one.maps.items():
        assert torch.equal(raw, other.maps[key])


def test_mapping_with_names_of_some_classes(network, images):
    named = whycam.explain(network, images, "conv2", targets="dog", classes={3: "dog"})
    assert torch.equal(named.map(), whycam.explain(network, images, "conv2", targets=3).map())


def test_several_targets_by_name(network, images):
    explained = whycam.explain(network, images, "conv2", targets={"why": "cat", "why not": "dog"}, classes=NAMES)
    expected = whycam.explain(network, images, "conv2", targets={"why": 2, "why not": 3})
    for key, raw in expected.maps.items():
        assert torch.equal(explained.maps[key], raw)


def test_class_names_of_the_model(network, images, loaded, batch):
    expected = whycam.explain(network, images, "conv2", targets=3).map()
    with pytest.raises(
        WhycamError, match=r"'dog' is a class name, but InPlace does not say .* pass classes=spec.classes"
    ):
        whycam.explain(network, images, "conv2", targets="dog")
    network.class_names = NAMES
    assert torch.equal(whycam.explain(network, images, "conv2", targets="dog").map(), expected)
    assert torch.equal(Explainer(nn.DataParallel(network), "conv2")(images, "dog").map(), expected)
    # The argument goes before the model's own names.
    other = whycam.explain(network, images, "conv2", targets="dog", classes=["dog", "ant", "bee", "cat", "elk"]).map()
    assert torch.equal(other, whycam.explain(network, images, "conv2", targets=0).map())
    torch.testing.assert_close(full_gradients(network, images, "dog").scores, network(images)[:, 3].detach())
    network.class_names = lambda: "something else of that name"
    assert torch.equal(whycam.explain(network, images, "conv2", targets=3).map(), expected)

    model, spec = loaded
    assert model.class_names == spec.classes
    by_name = whycam.explain(model, batch[:2], "layer4[-1]", targets="cat").map()
    assert torch.equal(by_name, whycam.explain(model, batch[:2], "layer4[-1]", targets=spec.classes.index("cat")).map())


def test_class_names_of_transformers_models():
    transformers = pytest.importorskip("transformers")
    names = {0: "tench, Tinca tinca", 1: "crane", 2: "Great White"}
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    model, images = transformers.ResNetForImageClassification(config).eval(), torch.randn(1, 3, 32, 32)
    for index, name in enumerate(["tinca tinca", "Crane", "great white"]):
        expected = whycam.explain(model, images, targets=index).map()
        assert torch.equal(whycam.explain(model, images, targets=name).map(), expected)


def test_explainer_with_class_names_can_be_pickled(network, images):
    import pickle

    explainer = pickle.loads(pickle.dumps(Explainer(network, "conv2", targets="dog", classes=NAMES)))
    assert torch.equal(explainer(images).map(), whycam.explain(network, images, "conv2", targets=3).map())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("cat", NAMES, 2),
        ("CAT", NAMES, 2),
        ("3", NAMES, 3),
        ("3", ["three", "3"], 1),
        ("cat", {17: "cat", 18: "dog"}, 17),
        ("18", {17: "cat", 18: "dog"}, 18),
        ("tinca tinca", ["tench, Tinca tinca", "goldfish"], 0),
        ("crane", ["crane, bird", "crane"], 1),  # a whole name goes before one of several names
        ("Crane", ["Crane", "crane"], 0),
    ],
)
def test_class_index(name, classes, expected):
    assert class_index(name, classes) == expected


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("cut", NAMES, r"unknown class 'cut' \(did you mean cat"),
        ("tinca tinka", ["tench, Tinca tinca", "goldfish"], r"did you mean tinca tinca"),
        ("5", NAMES, "unknown class '5'"),
        ("zzz", NAMES, r"unknown class 'zzz' \(there are ant, bee, cat, dog, elk\)"),
        ("crane", ["crane, bird", "crane, machine"], "class 'crane' stands for 0, 1: give the index that is meant"),
        ("cat", "cat", "classes are names in the order of the logits"),
        ("cat", [1, 2], "classes are names in the order of the logits"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused(name, classes, message):
    with pytest.raises(WhycamError, match=message):
        class_index(name, classes)


def test_class_names_that_do_not_fit_the_model_are_refused(network, images):
    with pytest.raises(WhycamError, match="3 class names are known, but InPlace has 5 outputs"):
        whycam.explain(network, images, "conv2", targets="bee", classes=NAMES[:3])
    with pytest.raises(WhycamError, match="classes are names in the order of the logits"):
        Explainer(network, "conv2", classes=5)
    with pytest.raises(WhycamError, match="class 'fox' is said to be output 5, but InPlace has 5 outputs"):
        whycam.explain(network, images, "conv2", targets="bee", classes={1: "bee", 5: "fox"})
    # The names are checked only if one is used.
    whycam.explain(network, images, "conv2", targets=1, classes=NAMES[:3])
    for target in ("bet", ["bee", "cat", "elf"], whycam.Margin("bee", "dof"), {"a": None, "b": "cet"}):
        with pytest.raises(WhycamError, match=r"unknown class '(bet|elf|dof|cet)' \(did you mean"):
            whycam.explain(network, images, "conv2", targets=target, classes=NAMES)
    with pytest.raises(WhycamError, match=r"'cat' is a class name: whycam.explain looks it up"):
        whycam.ClassScore("cat")(torch.randn(2, 5))
    assert ClassNames.of(network).names == {}
