"""Comparing methods: what is scored, what stands above what, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import whycam
from whycam.cam.methods import METHODS, method, resolve_methods
from whycam.cam.survey import default_layer
from whycam.errors import WhycamError
from whycam.metrics import bootstrap_interval, road
from whycam.metrics.bootstrap import sign_flip_test
from whycam.metrics.coherency import adcc, coherency
from whycam.metrics.comparison import LEVEL, Comparison, compare
from whycam.metrics.confidence import confidence_change
from whycam.metrics.contest import CONTROLS, Contest
from whycam.metrics.curves import deletion, insertion
from whycam.metrics.measures import CURVE_STEPS, MEASURES, find_measures, measure
from whycam.metrics.shape import complexity
from whycam.report.compared import (
    IN_A_ROW,
    draw_comparison,
    markdown_page,
    markdown_table,
    notes_on,
    row_order,
    text_table,
    verdict,
)

LAYER = "features[2]"


class Small(nn.Module):
    """Two convolutions and a linear layer, enough for every measure but cheap."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
        )
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        return 6 * self.linear(self.features(x).mean(dim=(2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(3)
    return Small().train()


def pictures(count=6, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def normalise(images):
    return (images - 0.5) / 0.25


CHEAP = ["road", "deletion", "insertion", "adcc", "sanity"]


def test_the_scores_are_those_of_the_measures_themselves(small):
    images = pictures()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    found = compare(small, images, ["gradcam", "layercam"], LAYER, preprocess=normalise, measures=CHEAP, batch_size=5)
    assert small.training
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())
    small.eval()
    classes = small(normalise(images)).argmax(dim=1)
    maps = whycam.explain(small, normalise(images), LAYER, "layercam").map()
    from whycam.seeds import derive_seed

    seeds = [derive_seed("contest", 0, place) for place in range(len(images))]
    shared = {"preprocess": normalise}
    drop = confidence_change(small, images, maps, classes, **shared).drop
    lit = complexity(whycam.cam.maps.heatmaps(maps, (12, 12)))
    alike = coherency(lambda x: whycam.explain(small, normalise(x), LAYER, "layercam", classes).map(), images, maps)
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
    # What sees no parameter is the same by the destroyed network.
    for control in ("sobel", "center"):
        assert found.scores["sanity"][control, "input"] == pytest.approx(torch.ones(6).double())
    assert found.scores["sanity"]["gradcam", LAYER].mean() < 0.95


def test_it_is_reproducible_by_its_seed_alone(small):
    torch.manual_seed(1)
    one = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise, measures=CHEAP, seed=5)
    torch.manual_seed(2)
    other = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise, measures=CHEAP, seed=5, batch_size=3)
    another = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise, measures=CHEAP, seed=6)
    for name in CHEAP:
        for key, values in one.scores[name].items():
            torch.testing.assert_close(other.scores[name][key], values, atol=2e-5, rtol=0)
    for name in ("road", "sanity"):
        assert not torch.allclose(another.scores[name]["gradcam", LAYER], one.scores[name]["gradcam", LAYER])


def test_methods_of_several_layers_and_of_the_image_take_part(small):
    layers = ["features[0]", LAYER]
    found = compare(
        small, pictures(), ["refinecam", "inputgradient", "gradcam"], layers, preprocess=normalise,
        measures=[*CHEAP, "coherency", "sensitivity", "infidelity", "drop", "increase", "gain", "complexity"],
    )  # fmt: skip
    joined = "+".join(layers)
    assert {("refinecam", joined), ("inputgradient", "input"), ("gradcam", LAYER)} <= set(found.keys)
    for name in found.scores:
        assert {len(values) for values in found.scores[name].values()} == {6}
        standings = {(standing.method, standing.layer): standing for standing in found.standings(name)}
        assert set(standings) == set(found.keys)
    json.dumps(found.to_dict())


def made(scores, name="road"):
    """A comparison of which the scores are given: (method, layer) → one a unit."""
    filled = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    return Comparison({name: filled}, dict.fromkeys(filled, 0), len(next(iter(filled.values()))))


NOISE = [0.0, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.0]


def shifted(by, wobble=0.0):
    return [by + value + wobble * (-1) ** place for place, value in enumerate(NOISE)]


def test_what_stands_above_what():
    scores = {
        ("a", "l"): shifted(0.5),
        ("b", "l"): shifted(0.499, wobble=0.1),  # not told apart from the best
        ("c", "l"): shifted(0.45),  # below the best in every image, though the intervals overlap widely
        ("d", "l"): shifted(0.0, wobble=0.01),
        ("random", "l"): shifted(0.0),
        ("sobel", "input"): shifted(0.47),
        ("center", "input"): shifted(-0.2),
    }
    found = {standing.method: standing for standing in made(scores).standings("ROAD")}
    assert [*found][:4] == ["a", "b", "sobel", "c"]
    assert [*found][-1] == "center"
    assert [found[name].best for name in "abcd"] == [True, True, False, False]
    assert found["a"].beats == ("random", "sobel", "center")
    assert found["a"].convincing
    assert found["b"].beats == ("random", "center")
    assert not found["b"].convincing
    assert found["c"].loses == ("sobel",)
    assert (found["d"].beats, found["d"].loses) == (("center",), ("sobel",))
    assert found["sobel"].control
    assert found["sobel"].convincing is None
    assert not found["sobel"].best
    assert found["a"].interval == bootstrap_interval(torch.tensor(scores["a", "l"], dtype=torch.float64))
    assert found["a"].mean == pytest.approx(0.5)


def test_lower_is_better_where_the_measure_says_so():
    scores = {("a", "l"): shifted(0.1), ("b", "l"): shifted(0.9), ("random", "l"): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    first, *_, last = made(scores, "deletion").standings("deletion")
    assert (first.method, first.best, first.convincing, first.mean) == ("a", True, True, pytest.approx(0.1))
    assert (last.method, last.best, last.beats, last.loses) == ("b", False, (), CONTROLS)
    low, high = first.interval
    assert low < 0.1 < high


def test_no_map_has_to_differ_more_than_random_weights_do():
    scores = {("a", "l"): shifted(0.5), ("random", "l"): shifted(0.1), ("sobel", "input"): [1.0] * 8,
              ("center", "input"): [1.0] * 8}  # fmt: skip
    found = made(scores, "sanity").standings("sanity")
    assert next(standing for standing in found if standing.method == "a").convincing


def test_a_map_of_no_single_layer_has_to_beat_random_weights_at_all_of_them():
    scores = {("refinecam", "k+l"): shifted(0.3), ("random", "k"): shifted(0.1), ("random", "l"): shifted(0.4),
              ("sobel", "input"): shifted(0.0), ("center", "input"): shifted(0.0)}  # fmt: skip
    (found,) = (standing for standing in made(scores).standings("road") if not standing.control)
    assert (found.beats, found.loses) == (("sobel", "center"), ("random",))


def test_units_for_which_a_measure_is_not_defined_are_left_out():
    nan = math.nan
    scores = {("b", "l"): [nan] * 9, ("a", "l"): [nan, *[0.5, 0.6, 0.7, 0.6] * 2],
              ("random", "l"): [9.0, *[0.1, 0.2, 0.1, 0.2] * 2], ("sobel", "input"): [0.0, *[nan] * 3, *[0.0] * 5],
              ("center", "input"): [nan] * 9}  # fmt: skip
    found = {standing.method: standing for standing in made(scores, "sensitivity").standings("sensitivity")}
    assert found["a"].mean == pytest.approx(0.6)
    assert found["a"].n == 8
    assert found["a"].interval == bootstrap_interval(torch.tensor([0.5, 0.6, 0.7, 0.6] * 2, dtype=torch.float64))
    # Five units in common tell nothing apart.
    assert (found["a"].beats, found["a"].loses) == ((), ("random",))
    assert found["a"].best
    # What is defined nowhere is neither the best nor the measure of who is.
    assert [*found] == ["sobel", "a", "random", "b", "center"]
    for name in ("b", "center"):
        assert math.isnan(found[name].mean)
        assert (found[name].interval, found[name].n, found[name].best) == (None, 0, False)
    comparison = made(scores, "sensitivity")
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert text_table(comparison).splitlines()[2].split() == ["b", "l", "–", "?", "0", "of", "1"]
    draw_comparison(comparison)


def test_signs_are_flipped():
    six = torch.arange(1, 7, dtype=torch.float64)
    assert sign_flip_test(six) == sign_flip_test(-six) == 2 / 64
    assert sign_flip_test(six[:5]) == 2 / 32
    assert sign_flip_test(torch.tensor([3.0, 3.0, -3.0])) == 1  # ±3 is the least there can be
    assert sign_flip_test(torch.zeros(40)) == 1
    assert sign_flip_test(torch.zeros(0)) == 1
    many = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert sign_flip_test(many + 1) == 1 / 2001
    # t is 2 with 39 degrees of freedom, of which the two-sided p is 0.0525.
    apart = many - many.mean() + 2 * many.std() / 40**0.5
    assert sign_flip_test(apart, draws=100_000) == pytest.approx(0.0525, abs=0.005)


@pytest.mark.parametrize("n", [3, 6, 8, 20])
def test_equals_are_told_apart_once_in_twenty_times_also_where_images_are_few(n):
    draw = torch.Generator().manual_seed(n)
    apart = torch.randn(800, n, generator=draw, dtype=torch.float64)
    found = sum(sign_flip_test(row, draws=500) <= LEVEL for row in apart) / len(apart)
    assert found <= LEVEL + 2.5 * (LEVEL * (1 - LEVEL) / len(apart)) ** 0.5
    if n > 6:
        assert found > LEVEL / 2


def test_broken_maps_are_counted_and_show_nothing(small):
    @method("Broken", paper="nowhere", needs=())
    def broken(trace):
        """Not finite for the first image."""
        maps = trace.activations.sum(dim=1)
        return torch.cat([torch.full_like(maps[:1], math.nan), maps[1:]])

    try:
        found = compare(small, pictures(), ["broken"], LAYER, preprocess=normalise, measures=["drop"], batch_size=4)
    finally:
        METHODS.pop("broken")
    assert found.broken["broken", LAYER] == 2  # the first of each batch
    assert found.to_dict()["broken"] == [{"method": "broken", "layer": LAYER, "maps": 2}]
    # Without evidence nothing of the image is left.
    small.eval()
    images = pictures()
    answers = small(normalise(torch.stack([images[0], torch.zeros(3, 12, 12)]))).softmax(dim=1)
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
        found = compare(small, pictures(), ["blank"], LAYER, preprocess=normalise, measures=["sanity"])
    finally:
        METHODS.pop("blank")
    values = found.scores["sanity"]["blank", LAYER]
    assert values.isnan().tolist() == [True, True, False, False, False, False]


def test_a_control_that_is_perfect_by_construction_does_not_count():
    for name in ("coherency", "sensitivity"):
        assert MEASURES[name].controls == ("random", "sobel")


def test_a_single_logit_is_refused_for_its_softmax_is_always_one(small):
    small.linear = nn.Linear(8, 1)
    with pytest.raises(WhycamError, match="a single logit, whose softmax is 1 whatever it is shown"):
        compare(small, pictures(), "gradcam", LAYER, preprocess=normalise)


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
    # Black and one colour each: all evidence for a colour lies in its cell but for a border that resizing smears.
    assert bool((own[[0, 1, 2, 4, 5, 6]] > 0.9).all())
    assert found.scores["pointing"]["broken", "features"][:8].isfinite().all()
    for standing in found.standings("pointing"):
        assert standing.n == 8


def test_a_measure_of_ones_own(small):
    @measure("My Measure", better="higher", paper="nowhere")
    def mine(contest, key):
        """The largest value.

        More of it below.
        """
        return contest.maps[key].amax(dim=(1, 2))

    try:
        assert find_measures(["my-measure", "ROAD", "road"]) == (mine, MEASURES["road"])
        assert mine.facts()["summary"] == "The largest value."
        found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise, measures=["My_Measure"])
        maps = whycam.explain(small.eval(), normalise(pictures()), LAYER).map()
        torch.testing.assert_close(found.scores["mymeasure"]["gradcam", LAYER], maps.amax(dim=(1, 2)).double())
        with pytest.raises(WhycamError, match="there is a measure 'mymeasure' already"):
            measure("My Measure", better="higher", paper="nowhere")(lambda contest, key: contest.maps[key])
    finally:
        MEASURES.pop("mymeasure")
    with pytest.raises(WhycamError, match="measure 'Mute' needs a docstring"):
        measure("Mute", better="higher", paper="nowhere")(lambda contest, key: contest.maps[key])


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
        compare(small, given.pop("images"), given.pop("methods"), given.pop("layers"), preprocess=normalise, **given)


def test_a_default_measure_that_cannot_be_is_left_out_and_said(small):
    found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise)
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
        model, pictures(12), ["gradcam", "hirescam"], f"{layer}.layernorm_before", preprocess=normalise,
        measures=["drop", "sanity"],
    )  # fmt: skip
    assert set(found.scores["sanity"]) == set(found.keys)
    with pytest.raises(WhycamError, match="pointing needs images of at least 4 classes"):
        compare(
            model, pictures(12), "gradcam", f"{layer}.layernorm_before", preprocess=normalise, measures=["pointing"]
        )


def test_what_was_not_measured_has_no_standings():
    with pytest.raises(WhycamError, match="ADCC was not measured here, only road"):
        made({("a", "l"): NOISE, ("random", "l"): NOISE}).standings("adcc")


def test_rows_stand_by_how_many_measures_convince_and_the_verdict_says_so():
    low, high = shifted(0.1), shifted(0.9)
    rivals = {("random", "l"): shifted(0.5), ("sobel", "input"): shifted(0.5), ("center", "input"): shifted(0.5)}
    road = {("a", "l"): high, ("b", "l"): shifted(0.8), ("c", "input"): low, **rivals}
    drop = {("a", "l"): high, ("b", "l"): low, ("c", "input"): low, **rivals}

    def both(**scores):
        filled = {
            name: {key: torch.tensor(values, dtype=torch.float64) for key, values in given.items()}
            for name, given in scores.items()
        }
        return Comparison(filled, dict.fromkeys(road, 0), 8, blank={("c", "input"): 3})

    comparison = both(road=road, drop=drop)
    assert [comparison.support(key) for key in row_order(comparison)[:3]] == [2, 1, 1]
    assert row_order(comparison)[:3] == [("b", "l"), ("a", "l"), ("c", "input")]
    assert verdict(comparison) == "Better than every control by all 2 measures: b l."
    assert notes_on(comparison) == [
        "3 maps of c at input are the same everywhere: take a layer that the answer depends on"
    ]
    one_each = both(road=road, drop={**drop, ("b", "l"): high})
    assert verdict(one_each) == "Better than every control by 1 of 2 measures, none by more: a l, b l, c."
    nothing = both(road=dict.fromkeys(road, low))
    assert verdict(nothing).startswith("No map is better than every control by any of these measures")


def test_sanity_tells_who_fails_and_not_who_is_best():
    scores = {("a", "l"): shifted(0.1), ("b", "l"): shifted(0.9), ("random", "l"): shifted(0.3),
              ("sobel", "input"): [1.0] * 8, ("center", "input"): [1.0] * 8}  # fmt: skip
    assert not any(standing.best for standing in made(scores, "sanity").standings("sanity"))


def test_what_is_not_given_is_chosen(small):
    images = normalise(pictures()).clamp(0, 1)
    found = compare(small, images, "gradcam", preprocess=None, measures=["drop"])
    small.eval()
    assert found.keys[0] == ("gradcam", default_layer(small, images).name)
    torch.testing.assert_close(
        found.scores["drop"]["gradcam", found.keys[0][1]].float(),
        confidence_change(
            small, images, whycam.explain(small, images).map(), small(images).argmax(dim=1)
        ).drop, atol=2e-5, rtol=0,
    )  # fmt: skip


def test_the_table_says_what_stands_out():
    scores = {("a", "l"): shifted(0.1), ("b", "l|m"): shifted(0.9), ("random", "l"): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    comparison = made(scores, "deletion")
    assert row_order(comparison)[:3] == [("a", "l"), ("b", "l|m"), ("random", "l")]
    head, *rows = text_table(comparison).splitlines()
    assert head.split() == ["method", "layer", "Deletion", "↓", "convincing"]
    assert rows[0].split() == ["a", "l", "0.100*", "1", "of", "1"]
    assert rows[1].split() == ["b", "l|m", "0.900", "?", "0", "of", "1"]
    assert rows[4].split() == ["control:", "center", "0.700"]
    _, rule, first, second, *_ = markdown_table(comparison).splitlines()
    assert rule == "| --- | --- | ---: | ---: |"
    assert first == r"| a | l | 0.100\*  | 1 of 1 |"
    assert r"l\|m" in second
    axes = draw_comparison(comparison).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["Deletion, lower is better"]
    assert len(axes[0].get_yticklabels()) == 5


LONG = "vit.encoder.layer.11.attention.output.dense.layernorm_before_the_last_projection"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("layer", "measures"), [("l", ["road"]), (LONG, ["road"]), (LONG, CHEAP), ("l", [*MEASURES])])
def test_a_figure_shows_its_words_whole_and_no_two_over_each_other(layer, measures):
    scores = {("augmented(noisy(layercam, n=4))", layer): shifted(0.1), ("random", layer): shifted(0.5),
              ("sobel", "input"): shifted(0.6), ("center", "input"): shifted(0.7)}  # fmt: skip
    scores = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    figure = draw_comparison(Comparison(dict.fromkeys(measures, scores), dict.fromkeys(scores, 0), 8))
    figure.canvas.draw()
    panels = figure.axes[: len(measures)]
    titles = [panel._left_title for panel in panels]
    assert [title.get_text().split(",")[0] for title in titles] == [MEASURES[name].title for name in measures]
    labels = [label for panel in panels for label in panel.get_yticklabels() if label.get_visible()]
    boxes = [text.get_window_extent() for text in (figure._suptitle, *titles)]
    for box in (*boxes, *(label.get_window_extent() for label in labels[:4])):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert len({round(panel.get_position().x0, 3) for panel in panels}) <= IN_A_ROW


def test_the_page_says_what_is_missing_and_what_was_broken():
    scores = {("a", "l"): shifted(0.1), ("random", "l"): shifted(0.5), ("sobel", "input"): shifted(0.6),
              ("center", "input"): shifted(0.7)}  # fmt: skip
    scores = {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}
    broken = dict.fromkeys(scores, 0) | {("a", "l"): 2}
    page = markdown_page(Comparison({"road": scores}, broken, 8, {"pointing": "too few classes"}), "8 images")
    assert "- pointing is left out: too few classes\n" in page
    assert "- 2 maps of a at l are not finite, and count as no evidence\n" in page


def test_a_lone_measure_may_be_given_by_its_name(small):
    found = compare(small, pictures(), "gradcam", LAYER, preprocess=normalise, measures="drop")
    assert list(found.scores) == ["drop"]


def test_on_the_bundled_network_grad_cam_points_at_the_right_cell():
    """Böhle et al. report 0.726 for Grad-CAM on CIFAR-10 with another network; chance is 0.111."""
    model, spec = whycam.load("cifar10-resnet18")
    images = whycam.open_source("bundled").read(range(40)).float() / 255
    found = compare(
        model, images, ["gradcam", "gradcam++"], "layer4[-1]", preprocess=spec.preprocess.normalise,
        measures=["pointing", "sanity"],
    )  # fmt: skip
    standings = {standing.method: standing for standing in found.standings("pointing")}
    assert standings["gradcam"].mean > 0.6
    assert standings["gradcam"].convincing
    for control in CONTROLS:
        assert standings[control].mean == pytest.approx(1 / 9, abs=0.02)
    sane = {standing.method: standing for standing in found.standings("sanity")}
    assert sane["gradcam"].mean < 0.6
    assert sane["gradcam"].convincing
    assert sane["sobel"].mean == pytest.approx(1)


def test_random_weights_are_others_for_each_image_and_the_same_again(small):
    contest = Contest(small.eval(), pictures(3).repeat(2, 1, 1, 1), normalise, (LAYER,), resolve_methods(["random"]))
    key = "random", LAYER
    maps = contest.maps[key]
    assert not torch.allclose(maps[:3], maps[3:], atol=1e-3)  # of the same three images
    torch.testing.assert_close(contest.again(key)(contest.images), maps)
    some = contest.explained(small, contest.images[:2], contest.classes[:2])
    torch.testing.assert_close(some[key], maps[:2])
