"""Running what follows a layer: the same numbers as the whole network, without what comes before."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import Branches, Dense, Raises, Residual, Reused, Transformer, TupleOutput
from networks_for_tracing import DataDependent, Functional, MixesTheBatch, Pair, SequenceFirst, Two
from torch import nn

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import resolve_layer
from whycam.cam.passes.graph_split import _TRACING, signature
from whycam.cam.passes.tail import _SPLITS, Tail

TRACED = {
    "residual": (Residual, "conv"),
    "residual, before": (Residual, "stem"),
    "dense": (Dense, "conv"),
    "dense, first": (Dense, "one"),
    "branches": (Branches, "conv"),
    "other branch": (Branches, "other[0]"),
    "functional": (Functional, "conv"),
    "transformer": (Transformer, "blocks[-1]"),
    "transformer, inside": (Transformer, "blocks[1].norm2"),
    "transformer, projection": (Transformer, "blocks[1].proj"),
    "sequence first": (SequenceFirst, "inner"),
    "dict output": (TupleOutput, "conv"),
}
WHOLE = {
    "reused": (Reused, "shared", "the layer runs 2 times"),
    "data-dependent": (DataDependent, "conv", "control flow"),
    "mixes the batch": (MixesTheBatch, "conv", "depends on the images"),
    "pair": (Pair, "layer", "no plain tensor"),
}


def watched(module, inputs, batch):
    """The layer's output, by a hook on the whole network, and the logits for another output."""

    def output(layer):
        seen = []
        handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        # The output is taken before anything works in place on it.
        handle2 = layer.register_forward_hook(
            lambda _m, _i, out: (out[0].clone(), *out[1:]) if isinstance(out, tuple) else out.clone()
        )
        module(*batch.args, **batch.kwargs)
        handle.remove()
        handle2.remove()
        return seen[0]

    return output


def whole(module, layer, inputs, outputs, rows):
    def replace(_module, _inputs, out):
        return (outputs.clone(), *out[1:]) if isinstance(out, tuple) else outputs.clone()

    handle = layer.register_forward_hook(replace)
    given = inputs.with_images(inputs.images[rows], rows)
    result = module(*given.args, **given.kwargs)
    handle.remove()
    return result["logits"] if isinstance(result, dict) else result


def make(kind, batch=4):
    torch.manual_seed(0)
    return kind().double().eval(), Inputs.of(torch.randn(batch, 3, 8, 8, dtype=torch.float64))


def first(result):
    return result["logits"] if isinstance(result, dict) else result


def check(module, layer, inputs, tail, generator):
    batch = len(inputs.images)
    output = watched(module, inputs, inputs)(layer.module)
    for rows in (
        torch.arange(batch),
        torch.tensor([batch - 1, 0, 0, batch // 2, batch - 1]),
        torch.tensor([batch // 2]),
    ):
        changed = output[rows] + torch.randn(output[rows].shape, generator=generator, dtype=output.dtype)
        expected = whole(module, layer.module, inputs, changed, rows)
        kept = changed.clone()
        torch.testing.assert_close(first(tail(changed, rows)), expected, rtol=0, atol=1e-13)
        assert torch.equal(changed, kept)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("name", TRACED)
@torch.no_grad()
def test_tail_gives_the_network_s_own_numbers_without_running_the_layer(name, batch, generator):
    kind, path = TRACED[name]
    module, inputs = make(kind, batch)
    layer = resolve_layer(module, path)
    tail = Tail(module, layer, inputs)
    assert tail.fallback_reason is None
    check(module, layer, inputs, tail, generator)

    calls = []
    before = [m for m in list(module.children())[:1] if not isinstance(m, nn.ModuleList)]
    handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in [layer.module, *before]]
    output = watched(module, inputs, inputs)(layer.module)
    calls.clear()
    tail(output, torch.arange(batch))
    tail(output, torch.arange(batch))
    for handle in handles:
        handle.remove()
    assert not calls


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_what_cannot_be_taken_apart_runs_as_a_whole(name, generator):
    kind, path, why = WHOLE[name]
    module, inputs = make(kind)
    layer = resolve_layer(module, path)
    tail = Tail(module, layer, inputs)
    assert why in tail.fallback_reason
    check(module, layer, inputs, tail, generator)


@torch.no_grad()
def test_several_inputs_and_flags(generator):
    torch.manual_seed(0)
    module = Two().double().eval()
    layer = resolve_layer(module, "conv")
    x, shift = torch.randn(4, 3, 8, 8).double(), torch.randn(4, 5).double()
    for given in [(x, shift), {"x": x, "shift": shift, "double": True}, (x, shift, True)]:
        inputs = Inputs.of(given)
        tail = Tail(module, layer, inputs)
        assert tail.fallback_reason is None
        check(module, layer, inputs, tail, generator)
    assert len(_SPLITS[module]) == 3
    assert signature(Inputs.of((x, shift))) != signature(Inputs.of((x, shift, True)))
    nested = Tail(module, layer, Inputs.of((x, shift, [x])))
    assert "a list argument" in nested.fallback_reason


@torch.no_grad()
def test_whole_model_as_the_layer():
    module, inputs = make(Functional)
    tail = Tail(module, resolve_layer(module, module), inputs)
    assert tail.fallback_reason is None
    output = torch.randn(2, 5).double()
    assert torch.equal(tail(output, torch.tensor([0, 1])), output)


@pytest.mark.parametrize("name", ["functional", "residual", "transformer"])
@torch.no_grad()
def test_model_is_as_before(name):
    kind, path = TRACED[name]
    module, inputs = make(kind)
    module.seen = ["kept"]
    before, attributes = snapshot(module), [dict(vars(m)) for m in module.modules()]
    values = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "last"}
    Tail(module, resolve_layer(module, path), inputs)
    assert_unchanged(module, before)
    assert [set(vars(m)) for m in module.modules()] == [set(kept) for kept in attributes]
    assert {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "last"} == values
    # What the network itself stores is a tensor, none of the tracer's stand-ins.
    assert module.seen[0] == "kept"
    assert all(isinstance(value, torch.Tensor) for value in module.seen[1:])
    assert getattr(module, "last", None) is None or isinstance(module.last, torch.Tensor)


@torch.no_grad()
def test_a_hook_on_what_is_traced_through_is_never_shown_a_stand_in():
    module, inputs = make(Residual)
    seen = []
    module.register_forward_hook(lambda _m, _i, out: seen.append(type(out)))
    tail = Tail(module, resolve_layer(module, "conv"), inputs)
    assert "hook" in tail.fallback_reason
    assert set(seen) == {torch.Tensor}


@torch.no_grad()
def test_hooks_elsewhere_run_as_usual(generator):
    module, inputs = make(Residual)
    module.head.register_forward_hook(lambda _m, _i, out: out * 3)
    layer = resolve_layer(module, "conv")
    tail = Tail(module, layer, inputs)
    assert tail.fallback_reason is None
    check(module, layer, inputs, tail, generator)


@torch.no_grad()
def test_traced_once_and_forgotten_with_the_model(monkeypatch, generator):
    module, inputs = make(Dense)
    layer = resolve_layer(module, "conv")
    Tail(module, layer, inputs)

    def refuse(*_):
        raise AssertionError("traced again")

    with monkeypatch.context() as patched:
        patched.setattr("whycam.cam.passes.tail.split_at", refuse)
        Tail(module, layer, inputs)
        # Other weights are no reason either: the graph holds paths, not modules.
        module.head.weight.mul_(2)
        check(module, layer, inputs, Tail(module, layer, inputs), generator)

    watch = weakref.ref(module)
    del module, layer
    gc.collect()
    assert watch() is None


@torch.no_grad()
def test_a_network_that_was_rebuilt_is_traced_again(generator):
    class Switch(Residual):
        twice = False

        def forward(self, x):
            y = self.conv(self.stem(x))
            return self.head((y * 2 if self.twice else y).mean((2, 3)))

    module, inputs = make(Switch)
    layer = resolve_layer(module, "conv")
    Tail(module, layer, inputs)
    module.twice = True
    tail = Tail(module, layer, inputs)
    assert tail.fallback_reason is None
    check(module, layer, inputs, tail, generator)


@torch.no_grad()
def test_other_threads_may_run_networks_while_one_is_traced():
    module, inputs = make(Transformer)
    other, expected = copy.deepcopy(module), None
    expected = other(inputs.images)
    wrong, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            with torch.no_grad():
                if not torch.equal(other(inputs.images), expected):
                    wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for index in range(3):
            _SPLITS.pop(module, None)
            assert Tail(module, resolve_layer(module, f"blocks[{index}]"), inputs).fallback_reason is None
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert not _TRACING.locked()


@torch.no_grad()
def test_an_exception_inside_leaves_no_hook():
    torch.manual_seed(0)
    module = Raises().eval()
    module.bad._forward_hooks.clear()
    inputs = Inputs.of(torch.randn(2, 3, 8, 8))
    tail = Tail(module, resolve_layer(module, "conv"), inputs)
    before = snapshot(module)
    handle = module.bad.register_forward_hook(Raises.fail)
    with pytest.raises(ZeroDivisionError):
        tail(torch.randn(2, 6, 6, 6), torch.arange(2))
    handle.remove()
    assert_unchanged(module, before)
