"""Take a network apart behind one of its layers, without touching it: a traced graph, the layer a single node in it.

Only the modules that contain the layer are traced through; every other one stays a single step, whatever it does
inside. So most networks can be traced, and control flow in a far corner does no harm.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks

from whycam.cam.network.inputs import Inputs

Environment = dict[fx.Node, Any]
# Tracing exchanges methods of nn.Module for the whole process: one at a time, and see _Tracer.
_TRACING = threading.Lock()
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


class UntraceableError(Exception):
    """The network cannot be taken apart at this layer; whoever asks runs all of it instead."""


class Split:
    """What of a network depends on a layer's output, and what of the rest feeds it.

    It holds no module, only paths: a network that is dropped is freed, and one whose weights change is run as it is.

    Attributes:
        layer: the node whose value is replaced.
        tail: the nodes that depend on it, in order of execution.
        head: the nodes before it that have to run for `boundary`, in order of execution; empty for a plain chain.
        boundary: the nodes outside the tail whose values it takes.
        result: the node whose value begins with the logits.
        constants: tensors that the forward pass makes itself.
    """

    def __init__(self, graph: fx.Graph, layer: fx.Node, constants: Mapping[str, Any]) -> None:
        self.layer, self.constants = layer, dict(constants)
        self._graph = graph
        output = next(node for node in graph.nodes if node.op == "output")
        leading = next(_nodes_in(output.args), None)
        if leading is None:
            raise UntraceableError("the output holds nothing that was computed")
        self.result = leading
        dependent = {layer}
        for node in graph.nodes:
            if node is not output and any(source in dependent for source in node.all_input_nodes):
                dependent.add(node)
        if self.result not in dependent:
            raise UntraceableError("the output does not depend on the layer")
        # Nodes without users stay in: they may work in place.
        self.tail = [node for node in graph.nodes if node in dependent and node is not layer]
        needed = {source for node in self.tail for source in node.all_input_nodes if source not in dependent}
        needed -= {layer}
        # Parameters are read when the tail runs: they are the network's own, not the batch's.
        self.fixed = [node for node in graph.nodes if node in needed and node.op == "get_attr"]
        self.boundary = [node for node in graph.nodes if node in needed and node.op != "get_attr"]
        order = {node: place for place, node in enumerate(graph.nodes)}
        last = max((order[node] for node in self.boundary), default=-1)
        self.head = [node for node in graph.nodes if order[node] <= last and node not in dependent]

    def run_head(self, model: nn.Module, inputs: Inputs) -> Environment:
        """The values that feed the tail."""
        return self._run(model, self.head, {}, self.boundary, inputs)

    def run_tail(self, model: nn.Module, output: Tensor, given: Environment) -> object:
        """What begins with the logits, where the layer gives ``output`` and the rest what `run_head` gave."""
        known = {self.layer: output, **given}
        return self._run(model, [*self.fixed, *self.tail], known, [self.result])[self.result]

    def _run(
        self,
        model: nn.Module,
        nodes: Sequence[fx.Node],
        known: Environment,
        wanted: Sequence[fx.Node],
        inputs: Inputs | None = None,
    ) -> Environment:
        values = dict(known)
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        kept = set(wanted)
        for node in nodes:
            values[node] = self._value(model, node, values, inputs)
            for source in (*node.all_input_nodes, node):
                # A value that nobody takes any more is freed, as in the network's own forward pass.
                if last_use.get(source, node) is node and source not in kept:
                    values.pop(source, None)
        return {node: values[node] for node in wanted}

    def _value(self, model: nn.Module, node: fx.Node, values: Environment, inputs: Inputs | None) -> Any:
        if node.op == "placeholder":
            assert inputs is not None  # placeholders belong to the head
            return _tensors(inputs)
        if node.op == "get_attr":
            path = str(node.target)
            return self.constants[path] if path in self.constants else _attribute(model, path)
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_module":
            return _attribute(model, str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function(*args, **kwargs)


def split_at(model: nn.Module, layer: nn.Module, inputs: Inputs) -> Split:
    """Trace ``model``, which is in eval mode, and cut behind ``layer``.

    Raises:
        UntraceableError: it cannot be done; the message says why.
    """
    around = [module for module in model.modules() if module is not layer and _contains(module, layer)]
    if any(getattr(module, name) for module in around for name in _HOOKS) or any(
        getattr(hooks, name) for name in _GLOBAL_HOOKS
    ):
        raise UntraceableError("a hook would see the tracer's stand-ins")
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in around):
        raise UntraceableError("a compiled module cannot be traced through")
    signature(inputs)
    entry = _Entry(model, inputs)
    before = set(vars(entry))
    tracer = _Tracer(frozenset(around))
    with _TRACING, _attributes_kept(around), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of the tracer's stand-ins, not of the user's data
        try:
            graph = tracer.trace(entry)
        except Exception as error:  # the user's code meets a stand-in it does not expect: anything may be raised
            raise UntraceableError(str(error)) from error
    constants = {name: value for name, value in vars(entry).items() if name not in before}
    found = [node for node in graph.nodes if node.op == "call_module" and _attribute(model, str(node.target)) is layer]
    if len(found) != 1:
        raise UntraceableError(f"the layer runs {len(found)} times")
    return Split(graph, found[0], constants)


def signature(inputs: Inputs) -> tuple[object, ...]:
    """What a traced graph depends on besides the tensors.

    Raises:
        UntraceableError: an argument is neither a tensor nor a plain value, so it would become part of the graph.
    """
    arguments = [*enumerate(inputs.args), *inputs.kwargs.items()]
    for _, value in arguments:
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise UntraceableError(f"a {type(value).__name__} argument would become part of the graph")
    return tuple((place, "tensor" if isinstance(value, Tensor) else (type(value), value)) for place, value in arguments)


class _Tracer(fx.Tracer):
    """Goes through the modules around the layer only, and leaves modules that other threads call alone."""

    def __init__(self, around: frozenset[nn.Module]) -> None:
        super().__init__()
        self._around = around
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return m not in self._around and not isinstance(m, _Entry)


class _Entry(nn.Module):
    """Calls the network. Being the traced module, it is the one that the tracer hangs its constants on."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network = network
        # Not the tensors themselves: the tracer would take them for parts of the network.
        self._args = tuple(_Slot() if isinstance(value, Tensor) else value for value in inputs.args)
        self._kwargs = {n: _Slot() if isinstance(value, Tensor) else value for n, value in inputs.kwargs.items()}

    def forward(self, tensors: Sequence[Tensor]) -> Any:
        count = 0

        def fill(value: object) -> object:
            nonlocal count
            if not isinstance(value, _Slot):
                return value
            count += 1
            return operator.getitem(tensors, count - 1)

        args = [fill(value) for value in self._args]
        return self.network(*args, **{name: fill(value) for name, value in self._kwargs.items()})


class _Slot:
    """Where a tensor goes."""


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, Tensor))


def _attribute(model: nn.Module, path: str) -> Any:
    """What lies at ``path``, which begins with the entry's name for the network."""
    found: Any = model
    for step in path.split(".")[1:]:
        found = getattr(found, step)
    return found


def _contains(module: nn.Module, layer: nn.Module) -> bool:
    return any(part is layer for part in module.modules())


def _nodes_in(structure: object) -> Iterator[fx.Node]:
    """The nodes in a nested output, in order."""
    if isinstance(structure, fx.Node):
        yield structure
    elif isinstance(structure, Mapping):
        for value in structure.values():
            yield from _nodes_in(value)
    elif isinstance(structure, Sequence) and not isinstance(structure, str):
        for value in structure:
            yield from _nodes_in(value)


@contextmanager
def _attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """What a forward pass stores on its modules would be the tracer's stand-ins: put back what was there."""
    attributes = [(module, dict(vars(module))) for module in modules]
    inside: list[tuple[Any, Any]] = []
    for _, kept in attributes:
        inside += [(value, value.copy()) for value in kept.values() if type(value) in (list, dict, set)]
    try:
        yield
    finally:
        for module, kept in attributes:
            vars(module).clear()
            vars(module).update(kept)
        for value, content in inside:
            if type(value) is list:
                value[:] = content
            else:
                value.clear()
                value.update(content)
