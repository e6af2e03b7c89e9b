"""Gradients at the outputs of modules, reported one by one while a backward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from whycam.nn_utils import hooked

Report = Callable[[nn.Module, Tensor], None]


class OutputWatcher:
    """Watches the outputs of ``modules`` in one forward pass, and reports their gradients in later backward passes.

    Args:
        modules: which to watch; a module whose output is no tensor is never reported.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self.modules = frozenset(modules)
        # A list of its own: a graph whose hooks referred to this object's owner would never be freed.
        self._listeners: list[Report] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch the forward pass inside the block."""
        tell = partial(_tell, self._listeners)

        def watch(module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                # A hook on the tensor reports the gradient there even if a ReLU then works in place on it, and nothing
                # has to be kept: the gradient is used as it comes by.
                output.register_hook(partial(tell, module))  # type: ignore[no-untyped-call]

        with hooked((module, watch) for module in self.modules):
            yield

    @contextmanager
    def reporting(self, report: Report, modules: Collection[nn.Module]) -> Iterator[None]:
        """Call ``report(module, gradient)`` for ``modules`` in the backward pass inside the block."""
        wanted = frozenset(modules)

        def tell(module: nn.Module, gradient: Tensor) -> None:
            if module in wanted:
                report(module, gradient)

        self._listeners.append(tell)
        try:
            yield
        finally:
            self._listeners.clear()


def _tell(listeners: list[Report], module: nn.Module, gradient: Tensor) -> None:
    for listen in listeners:
        listen(module, gradient)
