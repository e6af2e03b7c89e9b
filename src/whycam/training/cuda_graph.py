"""A training step as a CUDA graph: recorded once, replayed for every batch of that shape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from whycam.training.distributed import DistributedContext
from whycam.training.recipe import Recipe

Update = Callable[..., tuple[Tensor, Tensor]]
# Plain calls before a recording, in which cuDNN chooses its algorithms and libraries take their memory.
WARM_UPS = 3


def can_record(recipe: Recipe, device: torch.device, processes: DistributedContext) -> bool:
    """Whether a step of ``recipe`` is the same work on the GPU every time, and is to be recorded."""
    # Momentum is a number in the recording; Adam would count its steps on the host.
    same = recipe.optimizer != "adam" and recipe.momentum_range is None
    return recipe.graph and same and device.type == "cuda" and processes.count == 1


def make_rates_tensors(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let learning rates be read from the device's memory, where a recorded step finds the present ones."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


@dataclass
class _Recording:
    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class GraphedStep:
    """Calls an update plainly the first few times for each shape of its inputs, then replays what it did on the GPU.

    It is given with every call, and has to be the same one: were it kept here, it and its owner would keep each other.

    Launching a small network's hundreds of kernels one by one takes the host longer than the GPU needs to run them. An
    update that waits for the GPU, as a network of one's own may, cannot be recorded, and is called plainly for good.

    Attributes:
        refused: whether that was found out.
    """

    def __init__(self) -> None:
        self.refused = False
        self.recordings: dict[tuple[object, ...], _Recording] = {}
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, update: Update, x: Tensor, labels: Tensor, *how: Hashable) -> tuple[Tensor, Tensor]:
        """As ``update(x, labels, *how)``, recorded for each ``how`` too; the next call overwrites what is returned."""
        recording = self.recordings.setdefault((x.shape, labels.shape, *how), _Recording())
        if recording.graph is None and recording.calls >= WARM_UPS and not self.refused:
            self._record(update, recording, x, labels, *how)
        recording.calls += 1
        if recording.graph is None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss, correct = update(x, labels, *how)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss, correct
        for mine, given in zip(recording.inputs, (x, labels), strict=True):
            mine.copy_(given)
        recording.graph.replay()
        return recording.outputs[0], recording.outputs[1]

    def _record(self, update: Update, recording: _Recording, x: Tensor, labels: Tensor, *how: Hashable) -> None:
        """Record one call, which does nothing yet."""
        graph, inputs, stream = torch.cuda.CUDAGraph(), (x.clone(), labels.clone()), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = update(*inputs, *how)
        except RuntimeError:
            self.refused = True
            # torch leaves its recording's stream current if that fails, and (below 2.12 or so) the device's random
            # numbers waiting for the recording's end, so that the next dropout would be an error.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            random = torch.cuda.default_generators[x.device.index]
            with contextlib.suppress(RuntimeError):  # a network without dropout does not need it
                random.graphsafe_set_state(random.clone_state())
        else:
            recording.graph, recording.inputs, recording.outputs = graph, inputs, outputs
