"""Comparing methods on networks: what is scored, what takes part, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scored import CHEAP, LAYER, Small, normalize, pictures
from torch import nn

import whycam
from whycam.cam.inspect import default_layer
from whycam.cam.methods import METHODS, method, resolve_methods
from whycam.comparison.context import CONTROLS, ComparisonContext
from whycam.comparison.measures import CURVE_STEPS, MEASURES, find_measures, measure
from whycam.comparison.ranking import compare
from whycam.errors import WhycamError
from whycam.metrics import road
from whycam.metrics.faithfulness.confidence_drop import confidence_change
from whycam.metrics.faithfulness.insertion_deletion import deletion, insertion
from whycam.metrics.map_complexity import complexity
from whycam.metrics.robustness.coherency import adcc, coherency


@pytest.fixture
def small():
    torch.manual_seed(3)
    return Small().train()


def test_the_scores_are_those_of_the_measures_themselves(small):
    images = pictures()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    found = compare(small, images, ["gradcam", "layercam"], LAYER, preprocess=normalize, measures=CHEAP, batch_size=5)
    assert small.training
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())
    small.eval()
    classes = small(normalize(images)).argmax(dim=1)
    maps = whycam.explain(small, normalize(images), LAYER, "layercam").map()
    from whycam.seeds import derive_seed

    seeds = [derive_seed("context", 0, place) for place in range(len(images))]
    shared = {"preprocess": normalize}
    drop = confidence_change(small, images, maps, classes, **shared).drop
    lit = complexity(whycam.cam.maps.heatmaps(maps, (12, 12)))
    alike = coherency(lambda x: whycam.explain(small, normalize(x), LAYER, "layercam", classes).map(), images, maps)
    expected = {
        "road": road(small, images, maps, classes, seed=seeds, **shared).combined,
        "deletion": deletion(small, images, maps, classes, steps=CURVE_STEPS, seed=seeds, **shared).area,
        "insertion": insertion(small, images, maps, classes, steps=CURVE_STEPS, seed=seeds, **shared).area,
        "adcc": adcc(drop, lit, alike),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found.scores[name]["layercam", LAYER], values.double(), atol=2e-5, rtol=0)
    assert found.images == 6
    assert found.keys == (
        ("gradcam", LAYER), ("layercam", LAYER), ("sobel", "input"), ("center", "input"), ("random", LAYER),
    )  # fmt: skip
    # What sees no parameter is the same by the reinitialized network.
    for control in ("sobel", "center"):
        assert found.scores["sanity"][control, "input"] == pytest.approx(torch.ones(6).double())
    assert found.scores["sanity"]["gradcam", LAYER].mean() < 0.95


def test_it_is_reproducible_by_its_seed_alone(small):
    torch.manual_seed(1)
    one = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize, measures=CHEAP, seed=5)
    torch.manual_seed(2)
    other = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize, measures=CHEAP, seed=5, batch_size=3)
    another = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize, measures=CHEAP, seed=6)
    for name in CHEAP:
        for key, values in one.scores[name].items():
            torch.testing.assert_close(other.scores[name][key], values, atol=2e-5, rtol=0)
    for name in ("road", "sanity"):
        assert not torch.allclose(another.scores[name]["gradcam", LAYER], one.scores[name]["gradcam", LAYER])


def test_methods_of_several_layers_and_of_the_image_take_part(small):
    layers = ["features[0]", LAYER]
    found = compare(
        small, pictures(), ["refinecam", "inputgradient", "gradcam"], layers, preprocess=normalize,
        measures=[*CHEAP, "coherency", "sensitivity", "infidelity", "drop", "increase", "gain", "complexity"],
    )  # fmt: skip
    joined = "+".join(layers)
    assert {("refinecam", joined), ("inputgradient", "input"), ("gradcam", LAYER)} <= set(found.keys)
    for name in found.scores:
        assert {len(values) for values in found.scores[name].values()} == {6}
        rankings = {(ranking.method, ranking.layer): ranking for ranking in found.rankings(name)}
        assert set(rankings) == set(found.keys)
    json.dumps(found.to_dict())


def test_broken_maps_are_counted_and_show_nothing(small):
    @method("Broken", paper="nowhere", needs=())
    def broken(trace):
        """Not finite for the first image."""
        maps = trace.activations.sum(dim=1)
        return torch.cat([torch.full_like(maps[:1], math.nan), maps[1:]])

    try:
        found = compare(small, pictures(), ["broken"], LAYER, preprocess=normalize, measures=["drop"], batch_size=4)
    finally:
        METHODS.pop("broken")
    assert found.broken["broken", LAYER] == 2  # the first of each batch
    assert found.to_dict()["broken"] == [{"method": "broken", "layer": LAYER, "maps": 2}]
    # Without evidence nothing of the image is left.
    small.eval()
    images = pictures()
    answers = small(normalize(torch.stack([images[0], torch.zeros(3, 12, 12)]))).softmax(dim=1)
    before, after = answers[:, int(answers[0].argmax())].tolist()
    drop = max(0.0, before - after) / before
    assert float(found.scores["drop"]["broken", LAYER][0]) == pytest.approx(drop, abs=1e-5)


def test_maps_that_show_nothing_pass_no_sanity_check(small):
    @method("Blank", paper="nowhere", needs=())
    def blank(trace):
        """Nothing for the first image."""
        maps = trace.activations.sum(dim=1)
        return torch.cat([torch.zeros_like(maps[:1]), torch.full_like(maps[1:2], 2.0), maps[2:]])

    try:
        found = compare(small, pictures(), ["blank"], LAYER, preprocess=normalize, measures=["sanity"])
    finally:
        METHODS.pop("blank")
    values = found.scores["sanity"]["blank", LAYER]
    assert values.isnan().tolist() == [True, True, False, False, False, False]


def test_a_single_logit_is_refused_for_its_softmax_is_always_one(small):
    small.linear = nn.Linear(8, 1)
    with pytest.raises(WhycamError, match="a single logit, whose softmax is 1 whatever it is shown"):
        compare(small, pictures(), "gradcam", LAYER, preprocess=normalize)


class Certain(nn.Module):
    """Knows a class by its channel, of images that have one; takes any size."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])[..., None, None])
            self.features.bias.copy_(torch.tensor([0.0, 0, 0, 0.5]))

    def forward(self, x):
        return 30 * self.features(x).mean(dim=(2, 3))


def test_pointing_counts_images_and_a_broken_map_costs_nobody_else_the_game():
    @method("Broken", paper="nowhere", needs=())
    def broken(trace):
        """Not finite for the first of the batch."""
        maps = trace.activations.relu().sum(dim=1)
        return torch.cat([torch.full_like(maps[:1], math.nan), maps[1:]])

    images = torch.zeros(9, 3, 4, 4)
    for place in range(8):
        if place % 4 < 3:
            images[place, place % 4] = 0.5 + place / 20
    images[8] = 0.14  # none is likelier than one half
    try:
        found = compare(
            Certain(), images, ["layercam", "broken"], "features", preprocess=lambda x: x, measures=["pointing"]
        )
    finally:
        METHODS.pop("broken")
    own = found.scores["pointing"]["layercam", "features"]
    assert own.isnan().tolist() == [False] * 8 + [True]
    # Black and one color each: all evidence for a color lies in its cell but for a border that resizing smears.
    assert bool((own[[0, 1, 2, 4, 5, 6]] > 0.9).all())
    assert found.scores["pointing"]["broken", "features"][:8].isfinite().all()
    for ranking in found.rankings("pointing"):
        assert ranking.n == 8


def test_a_measure_of_ones_own(small):
    @measure("My Measure", better="higher", paper="nowhere")
    def mine(context, key):
        """The largest value.

        More of it below.
        """
        return context.maps[key].amax(dim=(1, 2))

    try:
        assert find_measures(["my-measure", "ROAD", "road"]) == (mine, MEASURES["road"])
        assert mine.facts()["summary"] == "The largest value."
        found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize, measures=["My_Measure"])
        maps = whycam.explain(small.eval(), normalize(pictures()), LAYER).map()
        torch.testing.assert_close(found.scores["mymeasure"]["gradcam", LAYER], maps.amax(dim=(1, 2)).double())
        with pytest.raises(WhycamError, match="there is a measure 'mymeasure' already"):
            measure("My Measure", better="higher", paper="nowhere")(lambda context, key: context.maps[key])
    finally:
        MEASURES.pop("mymeasure")
    with pytest.raises(WhycamError, match="measure 'Mute' needs a docstring"):
        measure("Mute", better="higher", paper="nowhere")(lambda context, key: context.maps[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measures": ["rode"]},
            r"there is no measure 'rode' \(did you mean road or drop\?\)",
        ),
        ({"measures": []}, "no measure is asked for; there are road, deletion"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"images": pictures(1)}, r"1 image\(s\) tell nothing about spread"),
        ({"images": 2 * pictures()}, r"images must be floats in \[0, 1\]"),
        ({"layers": "features.9"}, "features.9"),
        ({"methods": "gradcamm"}, "gradcamm"),
        ({"measures": ["pointing"]}, "pointing needs images of at least 4 classes that the network is sure of, and"),
    ],
)
def test_what_is_refused(small, changes, message):
    given = {"images": pictures(), "methods": "gradcam", "layers": LAYER, "measures": ["road"]} | changes
    with pytest.raises(WhycamError, match=message):
        compare(small, given.pop("images"), given.pop("methods"), given.pop("layers"), preprocess=normalize, **given)


def test_a_default_measure_that_cannot_be_is_left_out_and_said(small):
    found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize)
    assert list(found.scores) == ["road", "deletion", "insertion", "adcc", "sanity"]
    assert found.to_dict()["left_out"]["pointing"].startswith("pointing needs images of at least 4 classes")


def test_a_transformer_takes_part_in_what_it_can():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=12, patch_size=3,
        num_labels=10, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    layer = next(path for path, _ in model.named_modules() if path.endswith("layers.1") or path.endswith("layer.1"))
    found = compare(
        model, pictures(12), ["gradcam", "hirescam"], f"{layer}.layernorm_before", preprocess=normalize,
        measures=["drop", "sanity"],
    )  # fmt: skip
    assert set(found.scores["sanity"]) == set(found.keys)
    with pytest.raises(WhycamError, match="pointing needs images of at least 4 classes"):
        compare(
            model, pictures(12), "gradcam", f"{layer}.layernorm_before", preprocess=normalize, measures=["pointing"]
        )


def test_what_is_not_given_is_chosen(small):
    images = normalize(pictures()).clamp(0, 1)
    found = compare(small, images, "gradcam", preprocess=None, measures=["drop"])
    small.eval()
    assert found.keys[0] == ("gradcam", default_layer(small, images).name)
    torch.testing.assert_close(
        found.scores["drop"]["gradcam", found.keys[0][1]].float(),
        confidence_change(
            small, images, whycam.explain(small, images).map(), small(images).argmax(dim=1)
        ).drop, atol=2e-5, rtol=0,
    )  # fmt: skip


def test_a_lone_measure_may_be_given_by_its_name(small):
    found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalize, measures="drop")
    assert list(found.scores) == ["drop"]


def test_on_the_bundled_network_grad_cam_points_at_the_right_cell():
    """Böhle et al. report 0.726 for Grad-CAM on CIFAR-10 with another network; chance is 0.111."""
    model, spec = whycam.load("cifar10-resnet18")
    images = whycam.open_source("bundled").read(range(40)).float() / 255
    found = compare(
        model, images, ["gradcam", "gradcam++"], "layer4[-1]", preprocess=spec.preprocess.normalize,
        measures=["pointing", "sanity"],
    )  # fmt: skip
    rankings = {ranking.method: ranking for ranking in found.rankings("pointing")}
    assert rankings["gradcam"].mean > 0.6
    assert rankings["gradcam"].convincing
    for control in CONTROLS:
        assert rankings[control].mean == pytest.approx(1 / 9, abs=0.02)
    sane = {ranking.method: ranking for ranking in found.rankings("sanity")}
    assert sane["gradcam"].mean < 0.6
    assert sane["gradcam"].convincing
    assert sane["sobel"].mean == pytest.approx(1)


def test_random_weights_are_others_for_each_image_and_the_same_again(small):
    context = ComparisonContext(
        small.eval(), pictures(3).repeat(2, 1, 1, 1), normalize, (LAYER,), resolve_methods(["random"])
    )
    key = "random", LAYER
    maps = context.maps[key]
    assert not torch.allclose(maps[:3], maps[3:], atol=1e-3)  # of the same three images
    torch.testing.assert_close(context.again(key)(context.images), maps)
    some = context.explained(small, context.images[:2], context.classes[:2])
    torch.testing.assert_close(some[key], maps[:2])
