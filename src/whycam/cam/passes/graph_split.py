"""Split a network after one of its layers, without changing it, by tracing it into a graph.

The tracer enters only the modules that contain the layer. Every other module is a single node of the graph, so most
networks can be traced: control flow inside those modules does no harm.
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

# Tracing patches nn.Module for the whole process, so only one trace runs at a time; see also _Tracer.
_TRACING = threading.Lock()
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


class UntraceableError(Exception):
    """The network cannot be split at this layer; the caller then runs the whole network."""


class Split:
    """A traced network, split after one layer into two graphs.

    It holds paths instead of modules. So it does not keep the network alive, and it runs with the current weights.

    Attributes:
        tail: all nodes that depend on the layer's output. Its inputs are that output and the boundary values; its
            output is the value that begins with the logits.
        head: all nodes that the boundary values need; these values are its output. Its input is the tuple of tensors
            among the network's arguments.
        boundary: names of the values outside the tail that the tail uses, in the order of the tail's inputs.
        constants: path → tensor that the forward pass creates itself.
    """

    def __init__(self, graph: fx.Graph, layer: fx.Node, constants: Mapping[str, Any]) -> None:
        self.constants = dict(constants)
        nodes, result = list(graph.nodes), _result_of(graph)
        dependent = _dependent_on(layer, graph)
        if result not in dependent:
            raise UntraceableError("the output does not depend on the layer")
        # Nodes whose value nobody uses stay in, because they may change a tensor in place.
        tail = [node for node in nodes if node in dependent and node is not layer]
        sources = {source for node in tail for source in node.all_input_nodes} - dependent
        # The tail reads parameters from the network when it runs, so they are no boundary values.
        parameters = [node for node in nodes if node in sources and node.op == "get_attr"]
        boundary = [node for node in nodes if node in sources and node.op != "get_attr"]
        before = nodes[: 1 + max(map(nodes.index, boundary), default=-1)]
        self.boundary = [node.name for node in boundary]
        self.tail = _subgraph([layer, *boundary], [*parameters, *tail], result)
        self.head = _subgraph([], [node for node in before if node not in dependent], tuple(boundary))


def _result_of(graph: fx.Graph) -> fx.Node:
    """The node whose value begins with the logits."""
    output = next(node for node in graph.nodes if node.op == "output")
    leading = next(_nodes_in(output.args), None)
    if leading is None:
        raise UntraceableError("the output holds no computed value")
    return leading


def _dependent_on(layer: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The layer and every node that depends on its output; not the graph's output node."""
    dependent = {layer}
    for node in graph.nodes:
        if node.op != "output" and any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _subgraph(inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], result: fx.Node | tuple[fx.Node, ...]) -> fx.Graph:
    """A graph of copies of ``nodes`` with ``inputs`` as its arguments."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.node.map_arg(result, copies.__getitem__))
    return graph


class GraphRunner(fx.Interpreter):
    """Runs one of a split's graphs on a network.

    Args:
        model: the network that was traced; its current weights are used.
        split: provides the constants that the graph may use.
        graph: the split's head or tail.
    """

    def __init__(self, model: nn.Module, split: Split, graph: fx.Graph) -> None:
        root = nn.Module()
        root.network = model  # the attribute's name in `_Entry`, which was traced
        for path, constant in split.constants.items():
            setattr(root, path, constant)
        super().__init__(root, graph=graph)
        self.extra_traceback = False  # errors keep the network's own message

    def __call__(self, *values: Any) -> Any:
        """Run the graph. Each value is freed after its last use, as in the network's own forward pass."""
        try:
            return self.run(*values, enable_io_processing=False)
        finally:
            self.env = {}


def split_at(model: nn.Module, layer: nn.Module, inputs: Inputs) -> Split:
    """Trace ``model``, which is in eval mode, and split it after ``layer``.

    Raises:
        UntraceableError: the network cannot be split there; the message says why.
    """
    around = [module for module in model.modules() if module is not layer and _contains(module, layer)]
    if any(getattr(module, name) for module in around for name in _HOOKS) or any(
        getattr(hooks, name) for name in _GLOBAL_HOOKS
    ):
        raise UntraceableError("a hook would receive the tracer's proxies")
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in around):
        raise UntraceableError("a compiled module cannot be traced through")
    signature(inputs)
    entry = _Entry(model, inputs)
    before = set(vars(entry))
    tracer = _Tracer(frozenset(around))
    with _TRACING, _attributes_kept(around), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these warnings are about the tracer's proxies, not about the user's data
        try:
            graph = tracer.trace(entry)
        except Exception as error:  # the user's code receives proxies that it does not expect: it may raise anything
            raise UntraceableError(str(error)) from error
    constants = {name: value for name, value in vars(entry).items() if name not in before}
    calls = [node for node in graph.nodes if node.op == "call_module" and _attribute(model, str(node.target)) is layer]
    if len(calls) != 1:
        raise UntraceableError(f"the layer runs {len(calls)} times")
    return Split(graph, calls[0], constants)


def signature(inputs: Inputs) -> tuple[object, ...]:
    """The arguments that a traced graph depends on, with "tensor" instead of each tensor.

    Raises:
        UntraceableError: an argument is neither a tensor nor a plain value, so the graph would contain it.
    """
    arguments = [*enumerate(inputs.args), *inputs.kwargs.items()]
    for _, value in arguments:
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise UntraceableError(f"a {type(value).__name__} argument would become part of the graph")
    return tuple((key, "tensor" if isinstance(value, Tensor) else (type(value), value)) for key, value in arguments)


class _Tracer(fx.Tracer):
    """Enters the modules around the layer only, and does not trace modules that other threads call."""

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
    """Calls the network. The tracer stores constants on the module that it traces: on this one, not on the network."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network = network
        # Slots instead of the tensors: the tracer would treat the tensors as attributes of the network.
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
    """A placeholder for a tensor argument."""


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors among a network's arguments, which are the head's input."""
    return tuple(value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, Tensor))


def _attribute(model: nn.Module, path: str) -> Any:
    """The attribute of the network at ``path``, whose first part is the attribute of `_Entry` and is skipped."""
    value: Any = model
    for name in path.split(".")[1:]:
        value = getattr(value, name)
    return value


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
    """Restore the modules' attributes after the block: a forward pass may store the tracer's proxies in them."""
    attributes = [(module, dict(vars(module))) for module in modules]
    containers: list[tuple[Any, Any]] = []
    for _, before in attributes:
        containers += [(value, value.copy()) for value in before.values() if type(value) in (list, dict, set)]
    try:
        yield
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for value, content in containers:
            if type(value) is list:
                value[:] = content
            else:
                value.clear()
                value.update(content)
