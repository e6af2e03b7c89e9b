"""Report the gradients at the outputs of modules, one by one, while a backward pass runs."""

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
        modules: the modules to watch. A module whose output is not a tensor is never reported.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self.modules = frozenset(modules)
        # The hooks refer to this list only: a graph whose hooks referred to this object's owner would never be freed.
        self._callbacks: list[Report] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch the forward pass inside the block."""
        call_all = partial(_call_all, self._callbacks)

        def watch(module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                # A hook on the tensor reports the gradient of the module's output even if a ReLU changes that output in
                # place later. No gradient is stored: each is used when it is reported.
                output.register_hook(partial(call_all, module))  # type: ignore[no-untyped-call]

        with hooked((module, watch) for module in self.modules):
            yield

    @contextmanager
    def reporting(self, report: Report, modules: Collection[nn.Module]) -> Iterator[None]:
        """Call ``report(module, gradient)`` for ``modules`` in the backward pass inside the block."""
        wanted = frozenset(modules)

        def report_wanted(module: nn.Module, gradient: Tensor) -> None:
            if module in wanted:
                report(module, gradient)

        self._callbacks.append(report_wanted)
        try:
            yield
        finally:
            self._callbacks.clear()


def _call_all(callbacks: list[Report], module: nn.Module, gradient: Tensor) -> None:
    for callback in callbacks:
        callback(module, gradient)
