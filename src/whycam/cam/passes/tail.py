"""Run what follows a layer on something else than what the layer gave.

Where the network can be traced (see `whycam.cam.passes.graph_split`), nothing before the layer runs again: what goes
around the layer, a skip connection say, is computed once for the batch. Everywhere else the whole network runs and a
hook exchanges the layer's output. Which of the two holds is decided by trying it out, so both give the same numbers.
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

# model → (layer, arguments) → its split; nothing in it keeps the model alive.
_SPLITS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Split]] = WeakKeyDictionary()
_MOST_SPLITS = 16
_PROBES = (2, 3)
_CHUNK = 128


class Tail:
    """What of ``model`` comes after ``layer``, for one batch of inputs.

    Args:
        model: in eval mode when this is made and whenever it is called.
        layer: whose output is replaced.
        inputs: the batch that the rows refer to.
        whole_output: everything that the network returns is asked for, not what begins with the logits.

    Attributes:
        why_all: why the whole network has to run; None where only what follows the layer does.
    """

    def __init__(self, model: nn.Module, layer: Layer, inputs: Inputs, *, whole_output: bool = False) -> None:
        self.model, self.layer, self.inputs = model, layer, inputs.detached()
        self.why_all: str | None = None
        self._head: GraphRunner | None = None
        self._tail: GraphRunner | None = None
        self._runs = 1
        self._feeds: list[_Feed] = []
        self._values: list[Any] = []
        try:
            self._prepare(whole_output=whole_output)
        except UntraceableError as error:
            self._tail, self.why_all = None, str(error)

    def __call__(self, outputs: Tensor, rows: Tensor) -> object:
        """What begins with the logits, where ``layer`` gives ``outputs`` (n, …) for the images at ``rows`` (n,)."""
        if self._tail is None:
            return self._run_all(outputs, rows)
        here = rows.to(outputs.device)
        boundary = [feed(value, here) for feed, value in zip(self._feeds, self._values, strict=True)]
        # A copy: what follows may work in place.
        return self._tail(outputs.clone(), *boundary)

    def _run_all(self, outputs: Tensor, rows: Tensor) -> object:
        ran = 0

        def replace(_module: nn.Module, _inputs: object, output: object) -> object:
            # A module that runs several times was captured at its last run: only that one is another's.
            nonlocal ran
            ran += 1
            return with_first_tensor(output, outputs.clone()) if ran == self._runs else None

        given = self._rows(rows)
        with hooked([(self.layer.module, replace)]):
            return self.model(*given.args, **given.kwargs)

    def _rows(self, rows: Tensor) -> Inputs:
        return self.inputs.with_images(self.inputs.images[rows.to(self.inputs.images.device)], rows)

    @torch.no_grad()
    def _prepare(self, *, whole_output: bool) -> None:
        batch = len(self.inputs.images)
        # The last image first: whoever mixes rows up is found out. Never as many as the batch, which ints may equal.
        rows = torch.arange(batch - 1, -1, -1).repeat(3)[: 3 if batch == 2 else 2]
        output, expected = self._observe(rows)
        if whole_output:
            raise UntraceableError("more than the logits is asked for")
        key = (self.layer.path, *signature(self.inputs))
        known = _SPLITS.get(self.model, {}).get(key)
        if known is not None and self._use(known, rows, output, expected) is None:
            return
        split = split_at(self.model, self.layer.module, self.inputs)
        if (wrong := self._use(split, rows, output, expected)) is not None:
            raise UntraceableError(wrong)
        if not split.constants:  # those may have been computed from parameters that are still to change
            known_splits = _SPLITS.setdefault(self.model, {})
            known_splits[key] = split
            while len(known_splits) > _MOST_SPLITS:  # a plain argument that changes with every call is a key of its own
                known_splits.pop(next(iter(known_splits)), None)

    def _observe(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output and the logits on a few images; the layer has to run once and give one tensor."""
        seen: list[object] = []

        def note(_module: nn.Module, _inputs: object, output: object) -> object:
            seen.append(output)
            return output.clone() if isinstance(output, Tensor) else None

        given = self._rows(rows)
        with hooked([(self.layer.module, note)]):
            logits = first_tensor(self.model(*given.args, **given.kwargs))
        self._runs = len(seen)
        if len(seen) != 1:
            raise UntraceableError(f"the layer runs {len(seen)} times")
        output = seen[0]
        if not isinstance(output, Tensor) or logits is None:
            raise UntraceableError("the layer or the network gives no plain tensor")
        return output, logits

    def _use(self, split: Split, rows: Tensor, output: Tensor, expected: Tensor) -> str | None:
        """Take ``split`` into use; says why not, if it does not compute the logits from the layer's own output."""
        try:
            self._head, self._tail = (GraphRunner(self.model, split, graph) for graph in (split.head, split.tail))
            self._feeds = self._probe(split)
            self._values = self._boundary_values()
            actual = first_tensor(self(output, rows))
        except UntraceableError as error:
            return str(error)
        except Exception as error:  # a graph of other days may not even run
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
        """How each boundary value follows the batch, found by running the head on two small batches."""
        if not split.boundary:
            return []
        few, more = (self._run_head(torch.arange(count) % len(self.inputs.images)) for count in _PROBES)
        return [_feed(one, other) for one, other in zip(few, more, strict=True)]

    def _boundary_values(self) -> list[Any]:
        """The batch's boundary values; None for those that depend on the number of images alone."""
        if not any(feed.recorded for feed in self._feeds):
            return [None] * len(self._feeds)
        batch = len(self.inputs.images)
        chunks = [self._run_head(torch.arange(start, min(start + _CHUNK, batch))) for start in range(0, batch, _CHUNK)]
        return [
            feed.join(list(parts)) if feed.recorded else None
            for feed, parts in zip(self._feeds, zip(*chunks, strict=True), strict=True)
        ]

    def _run_head(self, rows: Tensor) -> tuple[Any, ...]:
        assert self._head is not None  # it is set before anything is asked of it
        values: tuple[Any, ...] = self._head(tensors_of(self._rows(rows)))
        return values


@dataclass(frozen=True)
class _Feed:
    """How to make one boundary value for any selection of images.

    Attributes:
        recorded: whether it needs the batch's value; others depend on the number of images alone.
        join: the chunks' values → the batch's.
        take: (the batch's value, rows) → the selection's.
    """

    recorded: bool
    join: Callable[[list[Any]], Any]
    take: Callable[[Any, Tensor], Any]

    def __call__(self, value: Any, rows: Tensor) -> Any:
        return self.take(value, rows)


def _feed(few: Any, more: Any) -> _Feed:
    """Compare a value for 2 images with the one for 3."""
    if type(few) is not type(more):
        raise UntraceableError("a value changes its type with the batch")
    if isinstance(few, Tensor):
        return _tensor_feed(few, more)
    if isinstance(few, int) and not isinstance(few, bool) and few != more:
        step = more - few

        def count(_: Any, rows: Tensor) -> int:
            return int(few + step * (len(rows) - _PROBES[0]))

        return _Feed(False, lambda parts: parts[0], count)
    if isinstance(few, tuple | list):
        if len(few) != len(more) or hasattr(few, "_fields"):
            raise UntraceableError("a value changes its length with the batch")
        members = [_feed(one, other) for one, other in zip(few, more, strict=True)]
        kind = type(few)

        def join(parts: list[Any]) -> list[Any]:
            return [member.join([part[i] for part in parts]) for i, member in enumerate(members)]

        def take(value: Any, rows: Tensor) -> Any:
            return kind(member(value[i] if value is not None else None, rows) for i, member in enumerate(members))

        return _Feed(any(member.recorded for member in members), join, take)
    if few == more:
        return _Feed(False, lambda parts: parts[0], lambda _value, _rows: few)
    raise UntraceableError(f"a {type(few).__name__} depends on the batch")


def _tensor_feed(few: Tensor, more: Tensor) -> _Feed:
    grown = [axis for axis in range(few.ndim) if few.ndim == more.ndim and few.shape[axis] != more.shape[axis]]
    if few.ndim != more.ndim or len(grown) > 1:
        raise UntraceableError("a tensor's shape follows the batch in no simple way")
    if not grown:
        if not torch.equal(few, more):
            raise UntraceableError("a tensor depends on the images but not on their number")
        return _Feed(False, lambda parts: parts[0], lambda _value, _rows: few.clone())
    (axis,) = grown
    each, rest = divmod(few.shape[axis], _PROBES[0])
    if rest or more.shape[axis] != each * _PROBES[1]:
        raise UntraceableError("a tensor's shape follows the batch in no simple way")

    def take(value: Tensor, rows: Tensor) -> Tensor:
        # Windows and the like: each image's own lie beside one another.
        here = rows.to(value.device)
        places = here if each == 1 else (here[:, None] * each + torch.arange(each, device=here.device)).flatten()
        return value.index_select(axis, places)

    return _Feed(True, lambda parts: torch.cat(parts, dim=axis), take)
