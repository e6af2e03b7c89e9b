"""Run the part of a network after a layer (the tail) with the layer's output replaced.

If the network can be traced (see `whycam.cam.passes.graph_split`), nothing before the layer runs again: values that
bypass the layer, such as a skip connection, are computed once for the batch. Otherwise the whole network runs and a
hook replaces the layer's output. The traced tail is used only after a test run gave the network's own logits, so both
ways give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.passes.graph_split import GraphRunner, Split, UntraceableError, signature, split_at, tensors_of
from whycam.nn_utils import first_tensor, hooked, with_first_tensor

# model → (layer, arguments) → split. A split holds no reference to the model, so the model can be freed.
_SPLITS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Split]] = WeakKeyDictionary()
_MOST_SPLITS = 16
_PROBES = (2, 3)
_CHUNK = 128


class Tail:
    """The part of ``model`` after ``layer``, for one batch of inputs.

    Args:
        model: in eval mode, on construction and at each call.
        layer: whose output is replaced.
        inputs: the batch that the rows refer to.
        whole_output: return everything that the network returns, not only the value that begins with the logits.

    Attributes:
        fallback_reason: the reason why the whole network has to run; None if only the part after the layer runs.
    """

    def __init__(self, model: nn.Module, layer: Layer, inputs: Inputs, *, whole_output: bool = False) -> None:
        self.model, self.layer, self.inputs = model, layer, inputs.detached()
        self.fallback_reason: str | None = None
        self._head: GraphRunner | None = None
        self._tail: GraphRunner | None = None
        self._runs = 1
        self._feeds: list[_Feed] = []
        self._values: list[Any] = []
        try:
            self._prepare(whole_output=whole_output)
        except UntraceableError as error:
            self._tail, self.fallback_reason = None, str(error)

    def __call__(self, outputs: Tensor, rows: Tensor) -> object:
        """Replace the output of ``layer`` by ``outputs`` (n, …) for the images at ``rows`` (n,).

        Returns:
            The value that begins with the logits, or the network's whole output.
        """
        if self._tail is None:
            return self._run_all(outputs, rows)
        rows_here = rows.to(outputs.device)
        boundary = [feed(value, rows_here) for feed, value in zip(self._feeds, self._values, strict=True)]
        # A copy: the tail may change it in place.
        return self._tail(outputs.clone(), *boundary)

    def _run_all(self, outputs: Tensor, rows: Tensor) -> object:
        runs = 0

        def replace(_module: nn.Module, _inputs: object, output: object) -> object:
            # A module that runs several times was captured at its last run, so only that output is replaced.
            nonlocal runs
            runs += 1
            return with_first_tensor(output, outputs.clone()) if runs == self._runs else None

        inputs = self._rows(rows)
        with hooked([(self.layer.module, replace)]):
            return self.model(*inputs.args, **inputs.kwargs)

    def _rows(self, rows: Tensor) -> Inputs:
        return self.inputs.with_images(self.inputs.images[rows.to(self.inputs.images.device)], rows)

    @torch.no_grad()
    def _prepare(self, *, whole_output: bool) -> None:
        batch = len(self.inputs.images)
        # The last image comes first, so that a tail that confuses rows fails the test. The number of rows differs from
        # the batch size, so that an integer in the graph that equals the batch size fails too.
        rows = torch.arange(batch - 1, -1, -1).repeat(3)[: 3 if batch == 2 else 2]
        output, expected = self._observe(rows)
        if whole_output:
            raise UntraceableError("more than the logits is asked for")
        key = (self.layer.path, *signature(self.inputs))
        cached = _SPLITS.get(self.model, {}).get(key)
        if cached is not None and self._use(cached, rows, output, expected) is None:
            return
        split = split_at(self.model, self.layer.module, self.inputs)
        if (reason := self._use(split, rows, output, expected)) is not None:
            raise UntraceableError(reason)
        if not split.constants:  # constants may depend on parameters that change later
            cached_splits = _SPLITS.setdefault(self.model, {})
            cached_splits[key] = split
            while len(cached_splits) > _MOST_SPLITS:  # an argument that changes with every call adds a key each time
                cached_splits.pop(next(iter(cached_splits)), None)

    def _observe(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output and the logits for a few images; the layer has to run once and return one tensor."""
        outputs: list[object] = []

        def record(_module: nn.Module, _inputs: object, output: object) -> object:
            outputs.append(output)
            return output.clone() if isinstance(output, Tensor) else None

        inputs = self._rows(rows)
        with hooked([(self.layer.module, record)]):
            logits = first_tensor(self.model(*inputs.args, **inputs.kwargs))
        self._runs = len(outputs)
        if len(outputs) != 1:
            raise UntraceableError(f"the layer runs {len(outputs)} times")
        output = outputs[0]
        if not isinstance(output, Tensor) or logits is None:
            raise UntraceableError("the layer or the network returns no plain tensor")
        return output, logits

    def _use(self, split: Split, rows: Tensor, output: Tensor, expected: Tensor) -> str | None:
        """Use ``split`` from now on.

        Returns:
            None, or the reason if the split does not compute the ``expected`` logits from the layer's own output.
        """
        try:
            self._head, self._tail = (GraphRunner(self.model, split, graph) for graph in (split.head, split.tail))
            self._feeds = self._probe(split)
            self._values = self._boundary_values()
            actual = first_tensor(self(output, rows))
        except UntraceableError as error:
            return str(error)
        except Exception as error:  # the model may have changed since a cached graph was traced
            return f"the traced graph does not run: {error}"
        different = "the traced graph computes something else"
        if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
            return different
        coarse = expected.dtype.itemsize < 4 or torch.is_autocast_enabled(output.device.type)
        tolerance = 1e-2 if coarse else 1e-5 if expected.dtype.itemsize < 8 else 1e-12
        scale = float(expected.abs().nan_to_num(posinf=0.0).max()) if expected.numel() else 0.0
        same = torch.allclose(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
        return None if same else different

    def _probe(self, split: Split) -> list[_Feed]:
        """How each boundary value depends on the batch, found by running the head on two small batches."""
        if not split.boundary:
            return []
        two, three = (self._run_head(torch.arange(count) % len(self.inputs.images)) for count in _PROBES)
        return [_feed(for_two, for_three) for for_two, for_three in zip(two, three, strict=True)]

    def _boundary_values(self) -> list[Any]:
        """The boundary values for the batch; None for values that depend on the number of images alone."""
        if not any(feed.recorded for feed in self._feeds):
            return [None] * len(self._feeds)
        batch = len(self.inputs.images)
        chunks = [self._run_head(torch.arange(start, min(start + _CHUNK, batch))) for start in range(0, batch, _CHUNK)]
        return [
            feed.join(list(parts)) if feed.recorded else None
            for feed, parts in zip(self._feeds, zip(*chunks, strict=True), strict=True)
        ]

    def _run_head(self, rows: Tensor) -> tuple[Any, ...]:
        assert self._head is not None  # `_use` sets it before any call
        values: tuple[Any, ...] = self._head(tensors_of(self._rows(rows)))
        return values


@dataclass(frozen=True)
class _Feed:
    """How to compute one boundary value for any selection of images.

    Attributes:
        recorded: whether it is selected from the batch's value; if not, it depends on the number of images alone.
        join: values of all chunks → value of the batch.
        take: (value of the batch, rows) → value for the images at these rows.
    """

    recorded: bool
    join: Callable[[list[Any]], Any]
    take: Callable[[Any, Tensor], Any]

    def __call__(self, value: Any, rows: Tensor) -> Any:
        return self.take(value, rows)


def _feed(two: Any, three: Any) -> _Feed:
    """Derive the feed from the values for 2 and for 3 images."""
    if type(two) is not type(three):
        raise UntraceableError("a value changes its type with the batch")
    if isinstance(two, Tensor):
        return _tensor_feed(two, three)
    if isinstance(two, int) and not isinstance(two, bool) and two != three:
        step = three - two

        def count(_: Any, rows: Tensor) -> int:
            return int(two + step * (len(rows) - _PROBES[0]))

        return _Feed(False, lambda parts: parts[0], count)
    if isinstance(two, tuple | list):
        if len(two) != len(three) or hasattr(two, "_fields"):
            raise UntraceableError("a value changes its length with the batch")
        members = [_feed(for_two, for_three) for for_two, for_three in zip(two, three, strict=True)]
        kind = type(two)

        def join(parts: list[Any]) -> list[Any]:
            return [member.join([part[i] for part in parts]) for i, member in enumerate(members)]

        def take(value: Any, rows: Tensor) -> Any:
            return kind(member(value[i] if value is not None else None, rows) for i, member in enumerate(members))

        return _Feed(any(member.recorded for member in members), join, take)
    if two == three:
        return _Feed(False, lambda parts: parts[0], lambda _value, _rows: two)
    raise UntraceableError(f"a {type(two).__name__} depends on the batch")


def _tensor_feed(two: Tensor, three: Tensor) -> _Feed:
    batch_axes = [axis for axis in range(two.ndim) if two.ndim == three.ndim and two.shape[axis] != three.shape[axis]]
    if two.ndim != three.ndim or len(batch_axes) > 1:
        raise UntraceableError("a tensor's shape does not grow in proportion to the batch")
    if not batch_axes:
        if not torch.equal(two, three):
            raise UntraceableError("a tensor depends on the images but not on their number")
        return _Feed(False, lambda parts: parts[0], lambda _value, _rows: two.clone())
    (axis,) = batch_axes
    per_image, remainder = divmod(two.shape[axis], _PROBES[0])
    if remainder or three.shape[axis] != per_image * _PROBES[1]:
        raise UntraceableError("a tensor's shape does not grow in proportion to the batch")

    def take(value: Tensor, rows: Tensor) -> Tensor:
        # Several entries per image (windows, for example) are adjacent along the axis.
        first = rows.to(value.device)
        if per_image == 1:
            return value.index_select(axis, first)
        indices = (first[:, None] * per_image + torch.arange(per_image, device=first.device)).flatten()
        return value.index_select(axis, indices)

    return _Feed(True, lambda parts: torch.cat(parts, dim=axis), take)
