"""Running what follows a layer: the same numbers as the whole network, without what comes before."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from networks import Raises, Reused, TupleOutput
from test_capture import assert_unchanged, snapshot
from torch import nn
from torch.nn import functional as F

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import resolve_layer
from whycam.cam.passes.graph_split import _TRACING, signature
from whycam.cam.passes.tail import _SPLITS, Tail


class Residual(nn.Module):
    """A skip connection around the layer, in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        y += x
        y = self.act(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


class Dense(nn.Module):
    """Concatenates everything that came before; several boundary values."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(7, 4, 3, padding=1)
        self.conv = nn.Conv2d(11, 4, 3, padding=1)
        self.last = nn.Conv2d(15, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        one = torch.relu(self.one(x))
        two = torch.relu(self.two(torch.cat([x, one], 1)))
        conv = torch.relu(self.conv(torch.cat([x, one, two], 1)))
        features = self.last(torch.cat([x, one, two, conv], 1))
        return self.head(features.mean((2, 3)))


class Branches(nn.Module):
    """Two branches of which the layer is one; the other runs after it and does not depend on it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.conv = nn.Conv2d(6, 4, 1)
        self.other = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Sigmoid())
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 3.0]).view(1, 4, 1, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        gate = self.other(x)
        return self.head((y * gate * self.scale).flatten(2).mean(2))


class Functional(nn.Module):
    """Shapes, reshapes, functions and methods in place; stores what it computes on itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.seen = []
        self.last = None

    def forward(self, x):
        b, _, h, w = x.shape
        y = self.conv(x)
        y.mul_(0.5)
        y = F.gelu(y)
        y = y.reshape(b, 6, h * w).permute(0, 2, 1)
        y = F.dropout(y, 0.5, training=self.training)
        self.last = y
        self.seen.append(y)
        return F.linear(y.mean(1), self.weight)


class Transformer(nn.Module):
    """Class token, position embedding, pre-norm blocks, a sequence-first attention in the middle."""

    def __init__(self, depth=3, dim=8):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class SequenceFirst(nn.Module):
    """The batch is the second axis of what goes around the layer, and windows multiply it."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x)
        windows = x.reshape(x.size(0) * 2, 4, 4)
        tokens = x.flatten(2).permute(2, 0, 1)
        y = self.inner(x.flatten(2).transpose(1, 2))
        y = y.transpose(0, 1) + tokens
        return self.head(y.mean(0)) + windows.reshape(y.size(1), -1)[:, :5]


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = self.conv(x)
        if y.sum() > 1e9:
            y = y * 2
        return self.head(y.mean((2, 3)))


class MixesTheBatch(nn.Module):
    """A head whose value depends on the images in no way that rows can follow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)) + x.mean())


class PairLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        y = self.conv(x)
        return y, y.mean()


class Pair(nn.Module):
    """The layer returns a tuple."""

    def __init__(self):
        super().__init__()
        self.layer = PairLayer()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(y.mean((2, 3)))


class Two(nn.Module):
    """A second tensor and a flag beside the images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x, shift=None, double=False):
        y = self.head(self.conv(x).mean((2, 3)))
        y = y + shift
        return {"loss": None, "logits": y * 2 if double else y}


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
