"""Reinitialized copies: exactly the given parts change, in the copy only."""

from __future__ import annotations

import threading
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_network import PARTS, Net, changed, random_images, state_of, trained, within
from torch import nn
from torch.nn.utils import parametrizations

from whycam.errors import WhycamError
from whycam.metrics.randomization.reinitialize import reinitialized, reinitialized_by_part
from whycam.metrics.randomization.sanity_check import sanity_check
from whycam.models import resnet18


def test_an_independent_copy_changes_in_its_part_only():
    model = trained()
    before = state_of(model)
    copies = dict(reinitialized_by_part(model, order="independent"))
    assert list(copies) == PARTS
    for part, copied in copies.items():
        assert changed(before, copied.state_dict()) == within(part, before)
    assert set().union(*(within(part, before) for part in PARTS)) == set(before)


def test_a_cascade_changes_one_more_part_each_time():
    model = trained()
    before, alone, seen = state_of(model), dict(reinitialized_by_part(model, order="independent")), set()
    cascade = list(reinitialized_by_part(model))
    assert [part for part, _ in cascade] == PARTS
    for part, copied in cascade:
        seen |= within(part, before)
        assert changed(before, copied.state_dict()) == seen
        # The new values of a part do not depend on the other parts.
        for other in PARTS[: PARTS.index(part) + 1]:
            drawn = alone[other].state_dict()
            assert all(torch.equal(copied.state_dict()[name], drawn[name]) for name in within(other, before))
    assert seen == set(before)


def test_reinitialized_equals_the_last_copy_of_the_cascade():
    *_, (_, last) = reinitialized_by_part(trained(), seed=2)
    at_once = reinitialized(trained(), seed=2).state_dict()
    assert all(torch.equal(value, at_once[name]) for name, value in last.state_dict().items())


def test_the_original_and_the_global_generators_do_not_change():
    model = trained().train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    before, modes = state_of(model), [module.training for module in model.modules()]
    torch.rand(3)  # a state that no code here could produce
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global state under test)
    copies = [copied for _, copied in reinitialized_by_part(model)]
    sanity_check(model, random_images(), "blocks[-1]", ["gradcam", "random"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert not changed(before, model.state_dict())
    assert [module.training for module in model.modules()] == modes
    for copied in copies:
        assert [module.training for module in copied.modules()] == modes
        assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_new_values_depend_only_on_the_seed():
    model = trained()
    one = dict(reinitialized_by_part(model, order="independent", seed=3))
    torch.rand(5)
    again, other = (dict(reinitialized_by_part(model, order="independent", seed=seed)) for seed in (3, 4))
    for part in PARTS:
        same = one[part].state_dict()
        assert not changed(same, again[part].state_dict())
        # A BatchNorm is reset to the same values for any seed.
        drawn = {name for name in within(part, same) if "norm" not in name}
        assert changed(same, other[part].state_dict()) == drawn
    # Two modules of the same shape get different values.
    last = dict(reinitialized_by_part(model))["Net"]
    assert not torch.equal(last.blocks[0].conv.weight, last.blocks[1].conv.weight)


def test_modules_use_reset_parameters_and_other_parameters_are_shuffled():
    model = trained()
    (*_, (_, copied)) = reinitialized_by_part(model)
    assert 0.3 < copied.head.weight.abs().max() <= 6**-0.5  # torch's bound for a Linear with six inputs
    norm = copied.blocks[1].norm
    assert torch.equal(norm.running_mean, torch.zeros(6))
    assert torch.equal(norm.weight, norm.running_var)
    assert torch.equal(norm.weight, torch.ones(6))
    assert norm.num_batches_tracked == 0
    assert torch.equal(copied.mask.flatten().sort().values, model.mask.flatten())
    assert len(copied.blocks[0].scale.unique()) == 6  # a constant is drawn, not shuffled


def test_a_constant_is_drawn_with_its_own_magnitude():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4000,), -1e-6))
            self.token = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
            self.empty = nn.Parameter(torch.zeros(0))

    ((_, copied),) = reinitialized_by_part(Scaled())
    scale, token = copied.scale.detach(), copied.token.detach()
    assert float(scale.std()) == pytest.approx(1e-6, rel=0.05)
    assert float(token.std()) == pytest.approx(0.02, rel=0.05)
    assert scale.mean().abs() < 1e-7
    assert copied.token.dtype == torch.float64


def test_parameters_that_reset_parameters_does_not_reach_change_too():
    class ByData(nn.Linear):  # an assignment that does not raise the version counter
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
    layers.last = layers[0](torch.rand(1, 3))  # has an autograd graph, like the weight that weight_norm computes
    before = state_of(layers)
    *_, (_, copied) = reinitialized_by_part(layers)
    assert torch.equal(copied.last, layers.last)
    after = copied.state_dict()
    # A parameter with one value is drawn, because shuffling would not change it.
    assert changed(before, after) == set(before)
    assert after["0.weight"].unique().tolist() == [0.125]
    assert 2 <= float(after["0.bias"].min()) <= float(after["0.bias"].max()) <= 3
    assert torch.equal(after["1.gain"].sort().values, before["1.gain"].sort().values)


def test_the_reset_parameters_of_a_split_network_is_not_called():
    class Resetting(Net):
        def reset_parameters(self):
            for module in self.children():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    model = Resetting()
    before = state_of(model)
    copies = dict(reinitialized_by_part(model, order="independent"))
    assert changed(before, copies["Resetting"].state_dict()) == {"mask"}


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def test_default_parts():
    resnet = resnet18()
    names = ["linear", *(f"layer{stage}.{block}" for stage in (4, 3, 2, 1) for block in (1, 0)), "bn1", "conv1"]
    assert [part for part, _ in reinitialized_by_part(resnet, order="independent")] == names
    held = [part for part, _ in reinitialized_by_part(Wrapper(resnet), order="independent")]
    assert held == [f"network.{name}" for name in names]
    assert [part for part, _ in reinitialized_by_part(nn.DataParallel(resnet), order="independent")] == names
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert [part for part, _ in reinitialized_by_part(flat)] == ["4", "1", "0"]


def test_named_parts():
    model = trained()
    before = state_of(model)
    copies = list(reinitialized_by_part(model, parts=["blocks[-1].conv", "norm", "blocks"]))
    assert [name for name, _ in copies] == ["blocks[-1].conv", "norm", "blocks"]
    wanted = [{"blocks.1.conv.weight", "blocks.1.conv.bias"}]
    wanted.append(wanted[0] | within("norm", before))
    wanted.append(wanted[1] | within("blocks", before))
    assert [changed(before, copied.state_dict()) for _, copied in copies] == wanted
    ((name, copied),) = reinitialized_by_part(model, parts="head", order="independent")
    assert name == "head"
    assert changed(before, copied.state_dict()) == {"head.weight", "head.bias"}


def test_tied_weights_stay_tied_and_half_precision_stays_half():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    model[1].weight = model[0].weight
    for _, copied in reinitialized_by_part(model):
        assert copied[0].weight is copied[1].weight
        assert copied[0].weight.dtype == torch.bfloat16
        assert not torch.equal(copied[0].weight, model[0].weight)


class Counted(Net):
    """Counts the copies that exist at the same time."""

    alive: ClassVar = weakref.WeakSet()
    most = 0

    def __setstate__(self, state):
        super().__setstate__(state)
        Counted.alive.add(self)
        Counted.most = max(Counted.most, len(Counted.alive))


def test_only_one_copy_is_in_memory():
    sanity_check(Counted(), random_images(), "blocks[-1]", ["gradcam", "layercam", "inputgradient"])
    assert Counted.most == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrong_arguments_are_refused():
    model = trained()
    locked = trained()
    locked.lock = threading.Lock()
    scripted = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.trace(nn.Conv2d(4, 4, 3), torch.rand(1, 4, 5, 5)))
    cases = [
        (model, {"order": "topdown"}, "order is 'cascading' or 'independent', not 'topdown'"),
        (model, {"parts": []}, "no part is given; omit parts"),
        (model, {"parts": ["head", "head"]}, "'head' is given twice"),
        (model, {"parts": ["haed"]}, r"'haed' \(did you mean head\?\)"),
        (model, {"parts": "act"}, "part 'act' has no parameters to reinitialize"),
        (nn.Sequential(nn.ReLU()), {}, "the Sequential has no parameters to reinitialize"),
        (nn.Sequential(nn.LazyLinear(3)), {}, r"has lazy parameters, .*: call model\(images\) once"),
        (scripted, {}, "reinitializes the parameters of the model, and '1' is a TorchScript"),
        (nn.ReLU, {}, "must be a torch.nn.Module"),
    ]
    for given, options, message in cases:
        with pytest.raises(WhycamError, match=message):
            reinitialized_by_part(given, **options)
    with pytest.raises(WhycamError, match=r"the Net cannot be copied \(cannot pickle .*lock.*\): remove"):
        next(reinitialized_by_part(locked))
