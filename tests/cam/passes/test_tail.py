"""`Tail`: it gives the numbers of the whole network without running the modules before the layer."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import Branches, Dense, Raises, Residual, Reused, Transformer, TupleOutput
from networks_for_tracing import DataDependent, Functional, MixesTheBatch, Pair, SequenceFirst, TwoInputs
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
NOT_TRACEABLE = {
    "reused": (Reused, "shared", "the layer runs 2 times"),
    "data-dependent": (DataDependent, "conv", "control flow"),
    "mixes the batch": (MixesTheBatch, "conv", "depends on the images"),
    "pair": (Pair, "layer", "no plain tensor"),
}


def output_of(module, inputs, layer):
    """The layer's output in a run of the whole network."""
    outputs = []

    def keep(_module, _inputs, out):
        """Keep the output, and go on with a copy, because later modules may change it in place."""
        outputs.append(out[0] if isinstance(out, tuple) else out)
        return (out[0].clone(), *out[1:]) if isinstance(out, tuple) else out.clone()

    handle = layer.register_forward_hook(keep)
    module(*inputs.args, **inputs.kwargs)
    handle.remove()
    return outputs[0]


def logits_with(module, layer, inputs, outputs, rows):
    """The logits of a run of the whole network with the layer's output replaced by ``outputs``."""

    def replace(_module, _inputs, out):
        return (outputs.clone(), *out[1:]) if isinstance(out, tuple) else outputs.clone()

    handle = layer.register_forward_hook(replace)
    chosen = inputs.with_images(inputs.images[rows], rows)
    result = module(*chosen.args, **chosen.kwargs)
    handle.remove()
    return logits_in(result)


def make(kind, batch=4):
    torch.manual_seed(0)
    return kind().double().eval(), Inputs.of(torch.randn(batch, 3, 8, 8, dtype=torch.float64))


def logits_in(result):
    return result["logits"] if isinstance(result, dict) else result


def check(module, layer, inputs, tail, generator):
    batch = len(inputs.images)
    output = output_of(module, inputs, layer.module)
    for rows in (
        torch.arange(batch),
        torch.tensor([batch - 1, 0, 0, batch // 2, batch - 1]),
        torch.tensor([batch // 2]),
    ):
        changed = output[rows] + torch.randn(output[rows].shape, generator=generator, dtype=output.dtype)
        expected = logits_with(module, layer.module, inputs, changed, rows)
        kept = changed.clone()
        torch.testing.assert_close(logits_in(tail(changed, rows)), expected, rtol=0, atol=1e-13)
        assert torch.equal(changed, kept)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("name", TRACED)
@torch.no_grad()
def test_tail_equals_the_network_without_running_the_layer(name, batch, generator):
    kind, path = TRACED[name]
    module, inputs = make(kind, batch)
    layer = resolve_layer(module, path)
    tail = Tail(module, layer, inputs)
    assert tail.fallback_reason is None
    check(module, layer, inputs, tail, generator)

    calls = []
    before = [m for m in list(module.children())[:1] if not isinstance(m, nn.ModuleList)]
    handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in [layer.module, *before]]
    output = output_of(module, inputs, layer.module)
    calls.clear()
    tail(output, torch.arange(batch))
    tail(output, torch.arange(batch))
    for handle in handles:
        handle.remove()
    assert not calls


@pytest.mark.parametrize("name", NOT_TRACEABLE)
@torch.no_grad()
def test_untraceable_networks_run_as_a_whole(name, generator):
    kind, path, reason = NOT_TRACEABLE[name]
    module, inputs = make(kind)
    layer = resolve_layer(module, path)
    tail = Tail(module, layer, inputs)
    assert reason in tail.fallback_reason
    check(module, layer, inputs, tail, generator)


@torch.no_grad()
def test_tail_with_several_inputs_and_flags(generator):
    torch.manual_seed(0)
    module = TwoInputs().double().eval()
    layer = resolve_layer(module, "conv")
    x, shift = torch.randn(4, 3, 8, 8).double(), torch.randn(4, 5).double()
    for arguments in [(x, shift), {"x": x, "shift": shift, "double": True}, (x, shift, True)]:
        inputs = Inputs.of(arguments)
        tail = Tail(module, layer, inputs)
        assert tail.fallback_reason is None
        check(module, layer, inputs, tail, generator)
    assert len(_SPLITS[module]) == 3
    assert signature(Inputs.of((x, shift))) != signature(Inputs.of((x, shift, True)))
    nested = Tail(module, layer, Inputs.of((x, shift, [x])))
    assert "a list argument" in nested.fallback_reason


@torch.no_grad()
def test_tail_behind_the_whole_model():
    module, inputs = make(Functional)
    tail = Tail(module, resolve_layer(module, module), inputs)
    assert tail.fallback_reason is None
    output = torch.randn(2, 5).double()
    assert torch.equal(tail(output, torch.tensor([0, 1])), output)


@pytest.mark.parametrize("name", ["functional", "residual", "transformer"])
@torch.no_grad()
def test_tracing_leaves_the_model_unchanged(name):
    kind, path = TRACED[name]
    module, inputs = make(kind)
    module.history = ["kept"]
    before, attributes = snapshot(module), [dict(vars(m)) for m in module.modules()]
    values = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "last"}
    Tail(module, resolve_layer(module, path), inputs)
    assert_unchanged(module, before)
    assert [set(vars(m)) for m in module.modules()] == [set(kept) for kept in attributes]
    assert {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "last"} == values
    # The network stores tensors, not the tracer's proxies.
    assert module.history[0] == "kept"
    assert all(isinstance(value, torch.Tensor) for value in module.history[1:])
    assert getattr(module, "last", None) is None or isinstance(module.last, torch.Tensor)


@torch.no_grad()
def test_hooks_on_traced_modules_never_receive_proxies():
    module, inputs = make(Residual)
    types = []
    module.register_forward_hook(lambda _m, _i, out: types.append(type(out)))
    tail = Tail(module, resolve_layer(module, "conv"), inputs)
    assert "hook" in tail.fallback_reason
    assert set(types) == {torch.Tensor}


@torch.no_grad()
def test_hooks_on_other_modules_run_in_the_tail(generator):
    module, inputs = make(Residual)
    module.head.register_forward_hook(lambda _m, _i, out: out * 3)
    layer = resolve_layer(module, "conv")
    tail = Tail(module, layer, inputs)
    assert tail.fallback_reason is None
    check(module, layer, inputs, tail, generator)


@torch.no_grad()
def test_split_is_cached_and_freed_with_the_model(monkeypatch, generator):
    module, inputs = make(Dense)
    layer = resolve_layer(module, "conv")
    Tail(module, layer, inputs)

    def refuse(*_):
        raise AssertionError("traced again")

    with monkeypatch.context() as patched:
        patched.setattr("whycam.cam.passes.tail.split_at", refuse)
        Tail(module, layer, inputs)
        # A change of weights needs no new trace, because the graph holds paths, not modules.
        module.head.weight.mul_(2)
        check(module, layer, inputs, Tail(module, layer, inputs), generator)

    watch = weakref.ref(module)
    del module, layer
    gc.collect()
    assert watch() is None


@torch.no_grad()
def test_changed_network_is_traced_again(generator):
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
def test_other_threads_run_networks_during_tracing():
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
def test_exception_in_the_tail_leaves_no_hook():
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
