"""A training step as a CUDA graph: captured once, then replayed for every batch of the same shape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.training.distributed import DistributedContext
from whycam.training.recipe import Recipe

Update = Callable[..., tuple[Tensor, Tensor]]
# Ordinary calls before the capture: cuDNN chooses its algorithms and libraries allocate their memory in them.
WARM_UP_CALLS = 3


def can_capture(recipe: Recipe, device: torch.device, dist: DistributedContext) -> bool:
    """Whether the recipe asks for CUDA graphs and every step does the same work on the GPU."""
    # A captured step contains the momentum as a constant, and Adam counts its steps on the host.
    same_work = recipe.optimizer != "adam" and recipe.momentum_range is None
    return recipe.graph and same_work and device.type == "cuda" and dist.world_size == 1


def use_tensor_lrs(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rates in the device's memory, so that a captured step reads their current values."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


@dataclass
class _Capture:
    """A graph with the tensors that it reads and writes; ``graph`` is None before the capture."""

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class GraphedStep:
    """Calls an update normally the first few times per input shape, then captures it and replays the graph.

    The update must be the same function in every call. It is an argument and not an attribute, because it belongs to
    the object that holds this one: a reference cycle would keep the network in memory.

    Why: launching a small network's hundreds of kernels one by one takes longer than the GPU needs to run them. An
    update that waits for the GPU cannot be captured (a user's network may do so); it is always called normally.

    Attributes:
        failed: whether the update could not be captured.
    """

    def __init__(self) -> None:
        self.failed = False
        self.captures: dict[tuple[object, ...], _Capture] = {}
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, update: Update, x: Tensor, labels: Tensor, *settings: Hashable) -> tuple[Tensor, Tensor]:
        """As ``update(x, labels, *settings)``, with one graph per shape and settings.

        The next call overwrites the returned tensors.
        """
        capture = self.captures.setdefault((x.shape, labels.shape, *settings), _Capture())
        if capture.graph is None and capture.calls >= WARM_UP_CALLS and not self.failed:
            self._capture(update, capture, x, labels, *settings)
        capture.calls += 1
        if capture.graph is None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss, correct = update(x, labels, *settings)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss, correct
        for own, given in zip(capture.inputs, (x, labels), strict=True):
            own.copy_(given)
        capture.graph.replay()
        return capture.outputs[0], capture.outputs[1]

    def _capture(self, update: Update, capture: _Capture, x: Tensor, labels: Tensor, *settings: Hashable) -> None:
        """Capture one call; this runs nothing on the GPU yet."""
        graph, inputs, stream = torch.cuda.CUDAGraph(), (x.clone(), labels.clone()), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = update(*inputs, *settings)
        except RuntimeError:
            self.failed = True
            # After a failed capture torch leaves the capture's stream current. Below 2.12 or so it also leaves the
            # random generator waiting for the capture's end, so that the next dropout would raise.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            random = torch.cuda.default_generators[x.device.index]
            with contextlib.suppress(RuntimeError):  # a network without dropout does not need it
                random.graphsafe_set_state(random.clone_state())
        else:
            capture.graph, capture.inputs, capture.outputs = graph, inputs, outputs
