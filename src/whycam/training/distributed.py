"""Training in several processes under ``torchrun``: this process's rank, its part of each batch, and BatchNorm.

Gradients are averaged by ``DistributedDataParallel``. Every process draws the augmentation of the whole batch and takes
its own part, so the images of a step do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from whycam.errors import WhycamError
from whycam.training.recipe import Recipe

# In seconds. Usually gloo releases a tensor within microseconds; a busy machine may take longer.
_RELEASE_TIMEOUT = 5.0


@dataclass(frozen=True)
class DistributedContext:
    """This process among all that train together.

    Attributes:
        rank: from 0; rank 0 writes the files and reports.
        world_size: the number of processes.
        device: the device that this process trains on.
        restarts: how often torchrun has restarted the processes.
    """

    rank: int
    world_size: int
    device: torch.device
    restarts: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This process's share of a batch from ``start`` to ``stop``; shares differ by at most one image."""
        length = stop - start
        return start + length * self.rank // self.world_size, start + length * (self.rank + 1) // self.world_size

    def sum(self, loss: Tensor, correct: Tensor, images: int) -> tuple[float, int, int]:
        """The sums over all processes."""
        if self.world_size == 1:
            return float(loss), int(correct), images
        totals = torch.stack([loss, correct.double(), loss.new_tensor(images)])
        _all_reduce(totals, dist.ReduceOp.SUM)
        return float(totals[0]), int(totals[1]), int(totals[2])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        if self.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        _all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    def convert_batchnorm(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """The network, with BatchNorm over the whole batch if there are several processes and the recipe wants it."""
        if self.world_size == 1 or not recipe.sync_batchnorm:
            return model
        if self.device.type == "cuda":
            return _convert_for_cuda(model)
        return synchronize_batchnorm(model)

    def wrap(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """The network to call in training: it averages gradients, and is compiled if the recipe says so."""
        network: nn.Module = model
        if self.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        if not recipe.compile:
            return network
        for module in model.modules():
            if isinstance(module, SyncedBatchNorm2d):
                # The compiler would try for minutes to trace the communication. A decorator on the class would do
                # too, but it would import the compiler, which takes a second, in every training.
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign, no-untyped-call]
        # Not in place: evaluations run in another mode and with other batch sizes, and would be compiled again.
        return torch.compile(network, dynamic=False)  # type: ignore[return-value]


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduce in place over all processes, and on the CPU wait until gloo's thread has released the tensor.

    gloo releases the tensor some time after the call has returned, and needs Python's lock for it. If Python is already
    shutting down then, the process is aborted, and a finished run counts as failed. gloo's threads are never joined,
    because ``DistributedDataParallel`` keeps the process group alive. Its own collectives are not affected: they pass
    gloo flat copies that Python does not own. The exception is a buffer that is the only one of its type, and the last
    such exchange happens before the final evaluation, early enough.
    """
    before = sys.getrefcount(tensor)
    dist.all_reduce(tensor, operation)
    if tensor.device.type == "cpu":
        end = time.monotonic() + _RELEASE_TIMEOUT
        while sys.getrefcount(tensor) > before and time.monotonic() < end:
            time.sleep(0)


def launched_as_rank_zero() -> bool:
    """Whether this process is the only one or ``torchrun``'s rank 0: the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def rank_zero_errors(timeout: float = 5.0) -> Iterator[None]:
    """Report an error that all of ``torchrun``'s processes have only once, and name the rank of any other error.

    If all processes fail with the same ``WhycamError``, rank 0 raises it and the others raise ``SystemExit``. The other
    ranks read rank 0's error from the launcher's store. If rank 0 has none within ``timeout`` seconds, or a different
    one, they raise their own error with their rank.
    """
    try:
        yield
    except WhycamError as error:
        rank = os.environ.get("RANK", "0")
        # Without the launcher's store, rank 0 would have to open one and wait for the others.
        if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise
        first = _share_rank_zero_error(str(error) if rank == "0" else None, timedelta(seconds=timeout))
        if rank == "0":
            raise
        if first == str(error):
            # If this process ended now, the launcher would end rank 0, perhaps before it has printed the error.
            time.sleep(timeout)
            raise SystemExit(2) from error
        raise WhycamError(f"process {rank}: {error}") from error


def _share_rank_zero_error(mine: str | None, timeout: timedelta) -> str | None:
    """On rank 0, put its error into the launcher's store; elsewhere (``mine`` is None), wait for it there."""
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
        store = PrefixStore(f"whycam-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if mine is not None:
            store.set("error", mine)
            return mine
        return str(store.get("error").decode())
    except (RuntimeError, ValueError, OSError):
        return None


@contextlib.contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` started, or train alone, for the length of the block.

    A process group that exists already is used and not closed.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" …; under torchrun each process takes the GPU
            of its local rank, with nccl, or the CPU with gloo.

    Raises:
        WhycamError: there is no such device, or no GPU for this process.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    joined = dist.is_initialized()
    if joined:
        world_size, rank = dist.get_world_size(), dist.get_rank()
    place = _training_device(device, several=world_size > 1)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if joined or world_size == 1:
        yield DistributedContext(rank, world_size, place, restarts)
        return
    store, rank, world_size = next(iter(rendezvous("env://")))
    # torchrun keeps its store over a restart; without a prefix the processes would find their predecessors' addresses.
    store = PrefixStore(f"whycam-{restarts}", store)
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    yield DistributedContext(rank, world_size, place, restarts)
    # Not after an error: the other processes would fail on the missing one before it has printed its own error.
    dist.destroy_process_group()


def _training_device(device: str, *, several: bool) -> torch.device:
    """The device of this process, checked and made current."""
    try:
        kind = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise WhycamError(f"device {device!r} is not known; give auto, cpu, cuda or cuda:N") from error
    if kind.type not in ("cpu", "cuda"):
        raise WhycamError(f"device {device!r} cannot be used for training; give auto, cpu, cuda or cuda:N")
    if kind.type == "cpu":
        return kind
    index = int(os.environ.get("LOCAL_RANK", "0")) if several else kind.index or 0
    if index >= torch.cuda.device_count():
        raise WhycamError(f"device cuda:{index} is not there ({torch.cuda.device_count()} GPUs); give another device")
    kind = torch.device("cuda", index)
    torch.cuda.set_device(kind)
    return kind


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        _all_reduce(total, dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        _all_reduce(total, dist.ReduceOp.SUM)
        return total


# torch does not annotate these two functions.
_sum_over_processes: Callable[[Tensor], Tensor] = _AllReduceSum.apply
_convert_for_cuda: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with training statistics over all processes' batches, on any device.

    torch's ``SyncBatchNorm`` does the same, but only on GPUs. The statistics are computed in at least fp32, first the
    mean and then the variance around it, so that several processes agree with one to within rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape, normalized per channel."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _sum_over_processes(torch.cat([x.sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        mean = (sums[:-1] / n).view(1, -1, 1, 1)
        centered = x - mean
        var = _sum_over_processes(centered.square().sum((0, 2, 3))) / n
        self._update_running_statistics(mean.flatten(), var * (n / (n - 1)))
        scale = (var + self.eps).rsqrt() * (self.weight if self.weight is not None else 1)
        y = centered * scale.view(1, -1, 1, 1)
        if self.bias is not None:
            y = y + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased_var, share)


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Make every ``BatchNorm2d`` of ``model`` a ``SyncedBatchNorm2d`` with the same parameters; returns ``model``."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # The subclass has the same state, so changing the class keeps the very same parameter objects.
            module.__class__ = SyncedBatchNorm2d
    return model
