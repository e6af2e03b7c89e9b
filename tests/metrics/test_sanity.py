"""Randomised copies: exactly what was asked for is new. The sanity check: maps follow the network, or stay at 1."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import whycam
from whycam.cam import METHODS, Method
from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.agreement import spearman, ssim
from whycam.metrics.randomise import destroyed, randomised
from whycam.metrics.sanity import sanity_check
from whycam.models import resnet18

PARTS = ["head", "blocks.1", "blocks.0", "norm", "stem", "Net"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.5))

    def forward(self, x):
        return x + self.scale * self.norm(self.conv(x)).relu()


class Net(nn.Module):
    """A block owns a constant, the network itself a parameter; some of it holds nothing to draw."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.linspace(0.5, 1.5, 36).view(1, 6, 6))
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(self.act(self.norm(self.stem(x * self.mask)))).mean((2, 3)))


def trained():
    """All its tensors hold what training may have left there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
    return model.eval()


def pictures(count=3, side=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def within(part, names):
    return {name for name in names if name == "mask"} if part == "Net" else {n for n in names if n.startswith(part)}


def test_an_independent_copy_is_new_in_its_part_and_nowhere_else():
    model = trained()
    before = state_of(model)
    copies = dict(randomised(model, order="independent"))
    assert list(copies) == PARTS
    for part, copied in copies.items():
        assert changed(before, copied.state_dict()) == within(part, before)
    assert set().union(*(within(part, before) for part in PARTS)) == set(before)


def test_a_cascade_adds_part_to_part_until_everything_is_new():
    model = trained()
    before, alone, seen = state_of(model), dict(randomised(model, order="independent")), set()
    cascade = list(randomised(model))
    assert [part for part, _ in cascade] == PARTS
    for part, copied in cascade:
        seen |= within(part, before)
        assert changed(before, copied.state_dict()) == seen
        # What a part is given does not depend on what else is drawn.
        for other in PARTS[: PARTS.index(part) + 1]:
            drawn = alone[other].state_dict()
            assert all(torch.equal(copied.state_dict()[name], drawn[name]) for name in within(other, before))
    assert seen == set(before)


def test_the_network_destroyed_at_once_is_the_last_of_the_cascade():
    *_, (_, last) = randomised(trained(), seed=2)
    at_once = destroyed(trained(), seed=2).state_dict()
    assert all(torch.equal(value, at_once[name]) for name, value in last.state_dict().items())


def test_the_original_and_the_global_generators_are_left_alone():
    model = trained().train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    before, modes = state_of(model), [module.training for module in model.modules()]
    torch.rand(3)  # a state that nothing here could have left behind
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (what is left alone)
    copies = [copied for _, copied in randomised(model)]
    sanity_check(model, pictures(), "blocks[-1]", ["gradcam", "random"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert not changed(before, model.state_dict())
    assert [module.training for module in model.modules()] == modes
    for copied in copies:
        assert [module.training for module in copied.modules()] == modes
        assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_the_seed_alone_decides_what_is_drawn():
    model = trained()
    one = dict(randomised(model, order="independent", seed=3))
    torch.rand(5)
    again, other = (dict(randomised(model, order="independent", seed=seed)) for seed in (3, 4))
    for part in PARTS:
        same = one[part].state_dict()
        assert not changed(same, again[part].state_dict())
        # A BatchNorm is reset to the same whatever the seed.
        drawn = {name for name in within(part, same) if "norm" not in name}
        assert changed(same, other[part].state_dict()) == drawn
    # Two modules of one shape in two places are drawn apart.
    last = dict(randomised(model))["Net"]
    assert not torch.equal(last.blocks[0].conv.weight, last.blocks[1].conv.weight)


def test_each_module_is_drawn_as_it_draws_itself_and_what_none_draws_is_shuffled():
    model = trained()
    (*_, (_, copied)) = randomised(model)
    assert 0.3 < copied.head.weight.abs().max() <= 6**-0.5  # torch's own bound for a Linear of six inputs
    norm = copied.blocks[1].norm
    assert torch.equal(norm.running_mean, torch.zeros(6))
    assert torch.equal(norm.weight, norm.running_var)
    assert torch.equal(norm.weight, torch.ones(6))
    assert norm.num_batches_tracked == 0
    assert torch.equal(copied.mask.flatten().sort().values, model.mask.flatten())
    assert len(copied.blocks[0].scale.unique()) == 6  # of a constant, a draw


def test_a_constant_is_drawn_at_its_own_magnitude():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4000,), -1e-6))
            self.token = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
            self.empty = nn.Parameter(torch.zeros(0))

    ((_, copied),) = randomised(Scaled())
    scale, token = copied.scale.detach(), copied.token.detach()
    assert float(scale.std()) == pytest.approx(1e-6, rel=0.05)
    assert float(token.std()) == pytest.approx(0.02, rel=0.05)
    assert scale.mean().abs() < 1e-7
    assert copied.token.dtype == torch.float64


def test_weights_that_reset_parameters_does_not_reach_are_drawn_all_the_same():
    class ByData(nn.Linear):  # an assignment that no version counter sees
        def reset_parameters(self):
            self.weight.data.fill_(0.125)
            self.bias.data.uniform_(2, 3)

    class Partly(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.gain = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    with pytest.warns(FutureWarning, match="weight_norm"):
        hooked = nn.utils.weight_norm(nn.Linear(5, 3))
    layers = nn.Sequential(
        ByData(3, 3), Partly(), parametrizations.weight_norm(nn.Linear(3, 5)), hooked, nn.MultiheadAttention(4, 2)
    )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.uniform_(0.1, 0.9)
    layers.last = layers[0](torch.rand(1, 3))  # carries a graph, as what weight_norm computes does
    before = state_of(layers)
    *_, (_, copied) = randomised(layers)
    assert torch.equal(copied.last, layers.last)
    after = copied.state_dict()
    # One value cannot be shuffled, and is drawn.
    assert changed(before, after) == set(before)
    assert after["0.weight"].unique().tolist() == [0.125]
    assert 2 <= float(after["0.bias"].min()) <= float(after["0.bias"].max()) <= 3
    assert torch.equal(after["1.gain"].sort().values, before["1.gain"].sort().values)


def test_a_network_that_was_taken_apart_does_not_reset_all_of_itself():
    class Resetting(Net):
        def reset_parameters(self):
            for module in self.children():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    model = Resetting()
    before = state_of(model)
    copies = dict(randomised(model, order="independent"))
    assert changed(before, copies["Resetting"].state_dict()) == {"mask"}


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def test_parts_by_default():
    resnet = resnet18()
    names = ["linear", *(f"layer{stage}.{block}" for stage in (4, 3, 2, 1) for block in (1, 0)), "bn1", "conv1"]
    assert [part for part, _ in randomised(resnet, order="independent")] == names
    held = [part for part, _ in randomised(Wrapper(resnet), order="independent")]
    assert held == [f"network.{name}" for name in names]
    assert [part for part, _ in randomised(nn.DataParallel(resnet), order="independent")] == names
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert [part for part, _ in randomised(flat)] == ["4", "1", "0"]


def test_parts_by_name():
    model = trained()
    before = state_of(model)
    copies = list(randomised(model, parts=["blocks[-1].conv", "norm", "blocks"]))
    assert [name for name, _ in copies] == ["blocks[-1].conv", "norm", "blocks"]
    wanted = [{"blocks.1.conv.weight", "blocks.1.conv.bias"}]
    wanted.append(wanted[0] | within("norm", before))
    wanted.append(wanted[1] | within("blocks", before))
    assert [changed(before, copied.state_dict()) for _, copied in copies] == wanted
    ((name, copied),) = randomised(model, parts="head", order="independent")
    assert name == "head"
    assert changed(before, copied.state_dict()) == {"head.weight", "head.bias"}


def test_tied_weights_stay_tied_and_half_precision_stays_half():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    model[1].weight = model[0].weight
    for _, copied in randomised(model):
        assert copied[0].weight is copied[1].weight
        assert copied[0].weight.dtype == torch.bfloat16
        assert not torch.equal(copied[0].weight, model[0].weight)


class Counted(Net):
    """Knows how many of its copies there are at once."""

    alive: ClassVar = weakref.WeakSet()
    most = 0

    def __setstate__(self, state):
        super().__setstate__(state)
        Counted.alive.add(self)
        Counted.most = max(Counted.most, len(Counted.alive))


def test_one_copy_at_a_time():
    sanity_check(Counted(), pictures(), "blocks[-1]", ["gradcam", "layercam", "inputgradient"])
    assert Counted.most == 1


METHOD_NAMES = ["gradcam", "layercam", "random", "refinecam", "inputgradient", "sobel", "center"]


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_figures_are_those_of_a_plain_loop(order):
    model, images = trained(), pictures(5, 6)
    layers = ["blocks[0]", "stem"]
    found = sanity_check(model, images, layers, METHOD_NAMES, order=order, seed=2)
    asked = [model.blocks[0], model.stem]  # as modules, named by their paths as they are in the copies
    original = whycam.explain(model, images, asked, METHOD_NAMES, seed=2)
    assert found.parts == tuple(PARTS)
    assert found.order == order
    names = {"blocks.0": "blocks[0]", "blocks.0+stem": "blocks[0]+stem"}
    expected = []
    for part, copied in randomised(model, order=order, seed=2):
        assert order == "independent" or not torch.equal(copied(images).argmax(1), original.predicted)
        asked = [copied.blocks[0], copied.stem]
        after = whycam.explain(copied, images, asked, METHOD_NAMES, original.predicted, seed=2)
        for method, layer, _ in original.maps:
            one, other = original.map(method, layer), after.map(method, layer)
            key = part, method, names.get(layer, layer)
            expected.append(key)
            torch.testing.assert_close(found.rank[key], spearman(one, other), rtol=0, atol=1e-12, equal_nan=True)
            torch.testing.assert_close(
                found.rank_absolute[key], spearman(one.abs(), other.abs()), rtol=0, atol=1e-12, equal_nan=True
            )
            alike = ssim(heatmaps(one, (6, 6)), heatmaps(other, (6, 6)), window=6, span=1)
            torch.testing.assert_close(found.similarity[key], alike, rtol=0, atol=1e-12)
    assert list(found.rank) == list(found.rank_absolute) == list(found.similarity) == expected


def test_what_does_not_look_at_the_network_stays_at_exactly_one():
    blind = Method("blind", "Blind", "", "", lambda trace: trace.activations.square().mean(dim=1), needs=frozenset(),
                   scope="input")  # fmt: skip
    found = sanity_check(trained(), pictures(8), methods=["sobel", "center", blind], order="independent")
    for measure in (found.rank, found.rank_absolute, found.similarity):
        assert len(measure) == 3 * len(PARTS)
        for values in measure.values():
            assert values.dtype == torch.float64
            assert values.tolist() == [1.0] * 8
    rows = found.rows()
    assert [(row["part"], row["method"], row["layer"]) for row in rows] == list(found.rank)
    assert all(row["rank"] == row["similarity"] == 1.0 and row["rank_absolute_n"] == 8 for row in rows)
    # A random weighting of channels is drawn alike for each copy: what is not changed before the layer changes nothing.
    head = sanity_check(trained(), pictures(), "blocks[-1]", ["random", "eigencam"], parts="head")
    assert all(values.tolist() == [1.0] * 3 for values in head.rank.values())


def test_classes_are_those_of_the_original_however_they_are_given():
    model, images = trained(), pictures(4)
    predicted = model(images).argmax(dim=1)
    free = sanity_check(model, images, "stem")
    for given in (predicted, predicted.tolist(), predicted.numpy(), whycam.ClassScore(predicted), whycam.Predicted()):
        fixed = sanity_check(model, images, "stem", targets=given)
        assert all(torch.equal(fixed.rank[key], values) for key, values in free.rank.items())
    other = (int(predicted[0]) + 1) % 4
    one = sanity_check(model, images, "stem", targets=other)
    assert not torch.equal(one.rank["head", "gradcam", "stem"], free.rank["head", "gradcam", "stem"])
    model.class_names = ("a", "b", "c", "d")
    named = sanity_check(model, images, "stem", targets="abcd"[other])
    assert all(torch.equal(named.rank[key], values) for key, values in one.rank.items())


def test_layers_of_a_wrapped_network_and_layers_that_nobody_named():
    model, images = trained(), pictures()
    plain = sanity_check(model, images, "blocks[-1]", ["gradcam", "random"])
    wrapped = sanity_check(nn.DataParallel(model), images, ["module.blocks[-1]"], ["gradcam", "random"])
    given = sanity_check(model, images, model.blocks[-1], ["gradcam", "random"])
    found = sanity_check(model, images, None, ["gradcam", "random"])
    model.cam_layers = ["blocks[-1]"]
    own = sanity_check(model, images, None, ["gradcam", "random"])
    names = ["module.blocks[-1]", "blocks.1", "blocks.1", "blocks[-1]"]
    for other, name in zip((wrapped, given, found, own), names, strict=True):
        for (part, method, _), values in plain.similarity.items():
            assert torch.equal(other.similarity[part, method, name], values)


class Silenced(nn.Linear):
    """Drawn anew, it says nothing."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def test_maps_without_ranks_are_left_out_of_the_means_and_counted():
    model = trained()
    model.head = Silenced(6, 4)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None].expand(4, 6))
    # Of class 0 all evidence is positive, of class 1 all negative, of class 2 there is none.
    found = sanity_check(model, pictures(3), "blocks[-1]", ["gradcam"], [0, 1, 2], parts="head")
    ((key, rank),) = found.rank.items()
    assert rank.isnan().all()
    similarity = found.similarity[key]
    assert -1 <= float(similarity[0]) < 0.9
    assert similarity[1:].isnan().all()
    (row,) = found.rows()
    assert row == {"part": "head", "method": "gradcam", "layer": "blocks[-1]", "rank": None, "rank_n": 0,
                   "rank_absolute": None, "rank_absolute_n": 0, "similarity": float(similarity[0]),
                   "similarity_n": 1}  # fmt: skip
    broken = Method("broken", "Broken", "", "", lambda trace: 1 / (METHODS["center"](trace) > 0.5).float(),
                    needs=frozenset(), scope="input")  # fmt: skip
    found = sanity_check(trained(), pictures(2), methods=[broken], parts="head")
    assert found.rank["head", "broken", "input"].isnan().all()
    assert found.similarity["head", "broken", "input"].isnan().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_randomised_is_one_sentence():
    model = trained()
    locked = trained()
    locked.lock = threading.Lock()
    scripted = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.trace(nn.Conv2d(4, 4, 3), torch.rand(1, 4, 5, 5)))
    cases = [
        (model, {"order": "topdown"}, "order is 'cascading' or 'independent', not 'topdown'"),
        (model, {"parts": []}, "no part is given; leave parts out"),
        (model, {"parts": ["head", "head"]}, "'head' is given twice"),
        (model, {"parts": ["haed"]}, r"'haed' \(did you mean head\?\)"),
        (model, {"parts": "act"}, "part 'act' has no parameters that could be drawn anew"),
        (nn.Sequential(nn.ReLU()), {}, "the Sequential has no parameters, so that nothing can be drawn anew"),
        (nn.Sequential(nn.LazyLinear(3)), {}, r"before it has seen a batch: call model\(images\) once"),
        (scripted, {}, "draws anew the parameters of the model, and '1' is a TorchScript"),
        (nn.ReLU, {}, "must be a torch.nn.Module"),
    ]
    for given, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            randomised(given, **options)
    with pytest.raises(WhycamError, match=r"the Net cannot be copied \(cannot pickle .*lock.*\): take out"):
        next(randomised(locked))


def test_what_cannot_be_checked_is_one_sentence():
    model, images = trained(), pictures()
    for targets in (lambda logits: logits[:, 0], whycam.Margin(0, 1), [0, whycam.Predicted(), 1]):
        with pytest.raises(WhycamError, match="every copy is asked about the same class: targets is None"):
            sanity_check(model, images, targets=targets)
    with pytest.raises(WhycamError, match="got dict"):
        sanity_check(model, images, targets={"a": 0})
    with pytest.raises(WhycamError, match="target class 4 does not exist"):
        sanity_check(model, images, targets=4)
    with pytest.raises(WhycamError, match=r"unknown layer 'blocks\.2'"):
        sanity_check(model, images, "blocks.2")
    line = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(WhycamError, match=r"maps of images, \(B, C, H, W\), got \(2, 1, 9\)"):
        sanity_check(line, torch.rand(2, 1, 9), "1")


def test_grad_cam_of_the_real_network_follows_it_and_class_blind_maps_do_not(model, batch):
    before = copy.deepcopy(model.state_dict())
    found = sanity_check(model, batch, "layer4[-1]", ["gradcam", "eigencam", "sobel"], parts=["linear", "layer4"])
    assert not changed(before, model.state_dict())
    rows = {(row["part"], row["method"]): row for row in found.rows()}
    for part in ("linear", "layer4"):
        assert abs(rows[part, "gradcam"]["rank"]) < 0.5
        assert rows[part, "gradcam"]["similarity"] < 0.5
        assert rows[part, "sobel"]["rank"] == 1
    assert rows["linear", "eigencam"]["rank"] == 1  # it looks at activations alone
    assert rows["layer4", "eigencam"]["rank"] < 0.8


def test_a_vision_transformer(generator):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
                                    image_size=64, patch_size=8, num_labels=5)  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        network.vit.embeddings.cls_token.zero_()
    before = state_of(network)
    found = sanity_check(network, torch.randn(2, 3, 64, 64, generator=generator), methods=["gradcam", "sobel"])
    assert found.parts[:2] == ("classifier", "vit.layernorm")
    assert {"vit.layers.2", "vit.layers.0", "vit.embeddings"} <= set(found.parts)
    assert found.parts[-1] == "vit.embeddings"
    *_, (_, copied) = randomised(network)
    # LayerNorms as untrained as these are reset to what they were.
    same = set(before) - changed(before, copied.state_dict())
    assert same
    assert all("norm" in name for name in same)
    assert not copied.vit.embeddings.cls_token.equal(network.vit.embeddings.cls_token)
    rows = found.rows()
    assert all(row["rank"] < 0.9 for row in rows if row["method"] == "gradcam" and row["part"] == "vit.embeddings")
    assert all(row["rank"] == 1 for row in rows if row["method"] == "sobel")
