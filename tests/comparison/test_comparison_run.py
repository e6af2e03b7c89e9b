"""Comparisons on networks: scores, methods and layers, defaults, and wrong arguments."""

from __future__ import annotations

import json
import math

import pytest
import torch
from comparison_helpers import FAST_METRICS, LAYER, SmallNet, normalize, random_images
from torch import nn

import whycam
from whycam.cam.inspect import default_layer
from whycam.cam.methods import METHODS, method, resolve_methods
from whycam.comparison.builtin_metrics import CURVE_STEPS
from whycam.comparison.context import CONTROLS, ComparisonContext
from whycam.comparison.run import compare
from whycam.errors import WhycamError
from whycam.metrics import road
from whycam.metrics.faithfulness.confidence_drop import confidence_change
from whycam.metrics.faithfulness.insertion_deletion import deletion, insertion
from whycam.metrics.map_complexity import complexity
from whycam.metrics.robustness.coherency import adcc, coherency


@pytest.fixture
def small():
    torch.manual_seed(3)
    return SmallNet().train()


def test_scores_equal_those_of_the_metric_functions(small):
    images = random_images()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    found = compare(
        small, images, ["gradcam", "layercam"], LAYER, preprocess=normalize, metrics=FAST_METRICS, batch_size=5
    )
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
    similar = coherency(lambda x: whycam.explain(small, normalize(x), LAYER, "layercam", classes).map(), images, maps)
    expected = {
        "road": road(small, images, maps, classes, seed=seeds, **shared).combined,
        "deletion": deletion(small, images, maps, classes, steps=CURVE_STEPS, seed=seeds, **shared).area,
        "insertion": insertion(small, images, maps, classes, steps=CURVE_STEPS, seed=seeds, **shared).area,
        "adcc": adcc(drop, lit, similar),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found.scores[name]["layercam", LAYER], values.double(), atol=2e-5, rtol=0)
    assert found.images == 6
    assert found.keys == (
        ("gradcam", LAYER), ("layercam", LAYER), ("sobel", "input"), ("center", "input"), ("random", LAYER),
    )  # fmt: skip
    # Controls without a network have the same map after reinitialization.
    for control in ("sobel", "center"):
        assert found.scores["sanity"][control, "input"] == pytest.approx(torch.ones(6).double())
    assert found.scores["sanity"]["gradcam", LAYER].mean() < 0.95


def test_scores_depend_only_on_the_seed(small):
    torch.manual_seed(1)
    one = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize, metrics=FAST_METRICS, seed=5)
    torch.manual_seed(2)
    other = compare(
        small, random_images(), "gradcam", LAYER, preprocess=normalize, metrics=FAST_METRICS, seed=5, batch_size=3
    )
    another = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize, metrics=FAST_METRICS, seed=6)
    for name in FAST_METRICS:
        for key, values in one.scores[name].items():
            torch.testing.assert_close(other.scores[name][key], values, atol=2e-5, rtol=0)
    for name in ("road", "sanity"):
        assert not torch.allclose(another.scores[name]["gradcam", LAYER], one.scores[name]["gradcam", LAYER])


def test_methods_that_join_layers_or_use_only_the_image(small):
    layers = ["features[0]", LAYER]
    found = compare(
        small, random_images(), ["refinecam", "inputgradient", "gradcam"], layers, preprocess=normalize,
        metrics=[*FAST_METRICS, "coherency", "sensitivity", "infidelity", "drop", "increase", "gain", "complexity"],
    )  # fmt: skip
    joined = "+".join(layers)
    assert {("refinecam", joined), ("inputgradient", "input"), ("gradcam", LAYER)} <= set(found.keys)
    for name in found.scores:
        assert {len(values) for values in found.scores[name].values()} == {6}
        rankings = {(ranking.method, ranking.layer): ranking for ranking in found.rankings(name)}
        assert set(rankings) == set(found.keys)
    json.dumps(found.to_dict())


def test_broken_maps_are_counted_and_scored_as_zero_maps(small):
    @method("Broken", paper="nowhere", needs=())
    def broken(trace):
        """Not finite for the first image."""
        maps = trace.activations.sum(dim=1)
        return torch.cat([torch.full_like(maps[:1], math.nan), maps[1:]])

    try:
        found = compare(small, random_images(), ["broken"], LAYER, preprocess=normalize, metrics=["drop"], batch_size=4)
    finally:
        METHODS.pop("broken")
    assert found.broken["broken", LAYER] == 2  # the first of each batch
    assert found.to_dict()["broken"] == [{"method": "broken", "layer": LAYER, "maps": 2}]
    # A zero map hides the whole image.
    small.eval()
    images = random_images()
    answers = small(normalize(torch.stack([images[0], torch.zeros(3, 12, 12)]))).softmax(dim=1)
    before, after = answers[:, int(answers[0].argmax())].tolist()
    drop = max(0.0, before - after) / before
    assert float(found.scores["drop"]["broken", LAYER][0]) == pytest.approx(drop, abs=1e-5)


def test_the_sanity_score_of_constant_maps_is_nan(small):
    @method("Blank", paper="nowhere", needs=())
    def blank(trace):
        """Constant for the first two images."""
        maps = trace.activations.sum(dim=1)
        return torch.cat([torch.zeros_like(maps[:1]), torch.full_like(maps[1:2], 2.0), maps[2:]])

    try:
        found = compare(small, random_images(), ["blank"], LAYER, preprocess=normalize, metrics=["sanity"])
    finally:
        METHODS.pop("blank")
    values = found.scores["sanity"]["blank", LAYER]
    assert values.isnan().tolist() == [True, True, False, False, False, False]


def test_a_single_logit_is_refused(small):
    small.linear = nn.Linear(8, 1)
    with pytest.raises(WhycamError, match="a single logit, and the softmax of one logit is always 1"):
        compare(small, random_images(), "gradcam", LAYER, preprocess=normalize)


class ChannelClassifier(nn.Module):
    """Classifies images by their one bright channel; takes images of any size."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])[..., None, None])
            self.features.bias.copy_(torch.tensor([0.0, 0, 0, 0.5]))

    def forward(self, x):
        return 30 * self.features(x).mean(dim=(2, 3))


def test_pointing_scores_images_and_tolerates_broken_maps():
    @method("Broken", paper="nowhere", needs=())
    def broken(trace):
        """Not finite for the first of the batch."""
        maps = trace.activations.relu().sum(dim=1)
        return torch.cat([torch.full_like(maps[:1], math.nan), maps[1:]])

    images = torch.zeros(9, 3, 4, 4)
    for place in range(8):
        if place % 4 < 3:
            images[place, place % 4] = 0.5 + place / 20
    images[8] = 0.14  # no class has a probability of one half
    try:
        found = compare(
            ChannelClassifier(),
            images,
            ["layercam", "broken"],
            "features",
            preprocess=lambda x: x,
            metrics=["pointing"],
        )
    finally:
        METHODS.pop("broken")
    own = found.scores["pointing"]["layercam", "features"]
    assert own.isnan().tolist() == [False] * 8 + [True]
    # Black and one color per image: all evidence lies in the cell, except for the blur of resizing at its border.
    assert bool((own[[0, 1, 2, 4, 5, 6]] > 0.9).all())
    assert found.scores["pointing"]["broken", "features"][:8].isfinite().all()
    for ranking in found.rankings("pointing"):
        assert ranking.n == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metrics": ["rode"]},
            r"there is no metric 'rode' \(did you mean road or drop\?\)",
        ),
        ({"metrics": []}, "no metric is given; there are road, deletion"),
        ({"batch_size": 0}, "the batch size must be at least 1, got 0"),
        ({"images": random_images(1)}, r"compare on at least 2 images, better on 50; got 1"),
        ({"images": 2 * random_images()}, r"images must be floats in \[0, 1\]"),
        ({"layers": "features.9"}, "features.9"),
        ({"methods": "gradcamm"}, "gradcamm"),
        (
            {"metrics": ["pointing"]},
            "pointing needs images of at least 4 classes that the network predicts with confidence",
        ),
    ],
)
def test_wrong_arguments_are_refused(small, changes, message):
    given = {"images": random_images(), "methods": "gradcam", "layers": LAYER, "metrics": ["road"]} | changes
    with pytest.raises(WhycamError, match=message):
        compare(small, given.pop("images"), given.pop("methods"), given.pop("layers"), preprocess=normalize, **given)


def test_a_default_metric_that_does_not_work_is_left_out(small):
    found = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize)
    assert list(found.scores) == ["road", "deletion", "insertion", "adcc", "sanity"]
    assert found.to_dict()["left_out"]["pointing"].startswith("pointing needs images of at least 4 classes")


def test_a_vision_transformer_is_compared_by_the_metrics_that_work():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=12, patch_size=3,
        num_labels=10, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    layer = next(path for path, _ in model.named_modules() if path.endswith("layers.1") or path.endswith("layer.1"))
    found = compare(
        model, random_images(12), ["gradcam", "hirescam"], f"{layer}.layernorm_before", preprocess=normalize,
        metrics=["drop", "sanity"],
    )  # fmt: skip
    assert set(found.scores["sanity"]) == set(found.keys)
    with pytest.raises(WhycamError, match="pointing needs images of at least 4 classes"):
        compare(
            model, random_images(12), "gradcam", f"{layer}.layernorm_before", preprocess=normalize, metrics=["pointing"]
        )


def test_default_layer_and_no_preprocessing(small):
    images = normalize(random_images()).clamp(0, 1)
    found = compare(small, images, "gradcam", preprocess=None, metrics=["drop"])
    small.eval()
    assert found.keys[0] == ("gradcam", default_layer(small, images).name)
    torch.testing.assert_close(
        found.scores["drop"]["gradcam", found.keys[0][1]].float(),
        confidence_change(
            small, images, whycam.explain(small, images).map(), small(images).argmax(dim=1)
        ).drop, atol=2e-5, rtol=0,
    )  # fmt: skip


def test_a_single_metric_may_be_a_string(small):
    found = compare(small, random_images(), "gradcam", LAYER, preprocess=normalize, metrics="drop")
    assert list(found.scores) == ["drop"]


def test_on_the_bundled_network_grad_cam_points_at_the_right_cell():
    """Böhle et al. report 0.726 for Grad-CAM on CIFAR-10 with another network; chance is 0.111."""
    model, spec = whycam.load("cifar10-resnet18")
    images = whycam.open_source("bundled").read(range(40)).float() / 255
    found = compare(
        model, images, ["gradcam", "gradcam++"], "layer4[-1]", preprocess=spec.preprocess.normalize,
        metrics=["pointing", "sanity"],
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


def test_the_random_control_draws_weights_for_each_image(small):
    context = ComparisonContext(
        small.eval(), random_images(3).repeat(2, 1, 1, 1), normalize, (LAYER,), resolve_methods(["random"])
    )
    key = "random", LAYER
    maps = context.maps[key]
    assert not torch.allclose(maps[:3], maps[3:], atol=1e-3)  # of the same three images
    torch.testing.assert_close(context.explain_altered(key)(context.images), maps)
    some = context.explain(small, context.images[:2], context.classes[:2])
    torch.testing.assert_close(some[key], maps[:2])
