"""Several processes under ``torchrun``: who am I, which part of the batch is mine, and BatchNorm over all of it.

Gradients are averaged by ``DistributedDataParallel``. Every process draws the whole batch's augmentation and takes
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

# Seconds; it is a matter of microseconds unless the machine is very busy.
_LETTING_GO = 5.0


@dataclass(frozen=True)
class DistributedContext:
    """This process among all that train together.

    Attributes:
        rank: from 0.
        count: how many there are.
        device: the one this process trains on.
        restarts: how often torchrun has restarted them.
    """

    rank: int
    count: int
    device: torch.device
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This process's part of a batch that reaches from ``start`` to ``stop``; parts differ by one at most."""
        length = stop - start
        return start + length * self.rank // self.count, start + length * (self.rank + 1) // self.count

    def sum(self, loss: Tensor, correct: Tensor, images: int) -> tuple[float, int, int]:
        """The sums over all processes."""
        if self.count == 1:
            return float(loss), int(correct), images
        totals = torch.stack([loss, correct.double(), loss.new_tensor(images)])
        _all_reduce(totals, dist.ReduceOp.SUM)
        return float(totals[0]), int(totals[1]), int(totals[2])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        if self.count == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        _all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def prepare(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """The bare network, with BatchNorm over the whole batch if there are several processes and it is wanted."""
        if self.count == 1 or not recipe.sync_batchnorm:
            return model
        if self.device.type == "cuda":
            return _convert_for_cuda(model)
        return synchronize_batchnorm(model)

    def wrap(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """The network to call in training: with gradients averaged, and compiled if the recipe says so."""
        network: nn.Module = model
        if self.count > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        if not recipe.compile:
            return network
        for module in model.modules():
            if isinstance(module, SyncedBatchNorm2d):
                # The compiler would look for minutes into how it waits for the other processes. Not said once of the
                # class: that would import the compiler, which takes a second, with every training.
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign, no-untyped-call]
        # Not in place: evaluations, in another mode and with other batches, would have to be compiled anew.
        return torch.compile(network, dynamic=False)  # type: ignore[return-value]


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduce in place over all processes, and on the CPU wait until gloo's thread has let go of the tensor.

    That comes some time after the call has returned, and takes Python's lock. If it were still to come when the run has
    ended and Python shuts down, the process would be aborted, and a finished run would count as failed. The threads
    themselves are never joined, since ``DistributedDataParallel`` keeps the process group alive. Its own collectives
    hand gloo flat copies that Python does not know, so that their release takes no lock (but for a buffer that is the
    only one of its type; at the end of a run the last of those is an evaluation ago).
    """
    before = sys.getrefcount(tensor)
    dist.all_reduce(tensor, operation)
    if tensor.device.type == "cpu":
        end = time.monotonic() + _LETTING_GO
        while sys.getrefcount(tensor) > before and time.monotonic() < end:
            time.sleep(0)


def is_first_process() -> bool:
    """Whether this process is alone or ``torchrun``'s first: the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def rank_zero_errors(patience: float = 5.0) -> Iterator[None]:
    """Let a mistake that ``torchrun``'s processes all make be said once; one that is another's alone names it.

    Of a shared mistake the block raises a ``WhycamError`` in the first process and ``SystemExit`` in the others. They
    know the first one's mistake from the launcher's store; if it has made none within ``patience`` seconds, or
    another one, theirs is told, with the number of the process.
    """
    try:
        yield
    except WhycamError as error:
        rank = os.environ.get("RANK", "0")
        # Without the launcher's store the first process would have to wait for the others to open one.
        if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise
        said = _first_ones_mistake(str(error) if rank == "0" else None, timedelta(seconds=patience))
        if rank == "0":
            raise
        if said == str(error):
            # Were this process to end now, the launcher would end the first one, perhaps before it has spoken.
            time.sleep(patience)
            raise SystemExit(2) from error
        raise WhycamError(f"process {rank}: {error}") from error


def _first_ones_mistake(mine: str | None, patience: timedelta) -> str | None:
    """Leave the first process's mistake in the launcher's store, or (``mine`` None) wait for it there."""
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=patience)))
        store = PrefixStore(f"whycam-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if mine is not None:
            store.set("mistake", mine)
            return mine
        return str(store.get("mistake").decode())
    except (RuntimeError, ValueError, OSError):
        return None


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` started (or be alone), for the length of the block.

    A process group that there is already is used, and left as it is.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" …; under torchrun each process takes the GPU
            of its local rank, with nccl, or the CPU with gloo.

    Raises:
        WhycamError: there is no such device, or no GPU for this process.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    joined = dist.is_initialized()
    if joined:
        count, rank = dist.get_world_size(), dist.get_rank()
    try:
        kind = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise WhycamError(f"device {device!r} is not known; give auto, cpu, cuda or cuda:N") from error
    if kind.type not in ("cpu", "cuda"):
        raise WhycamError(f"device {device!r} is none to train on; give auto, cpu, cuda or cuda:N")
    if kind.type == "cuda":
        index = local if count > 1 else kind.index or 0
        if index >= torch.cuda.device_count():
            raise WhycamError(
                f"device cuda:{index} is not there ({torch.cuda.device_count()} GPUs); give another device"
            )
        kind = torch.device("cuda", index)
        torch.cuda.set_device(kind)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if joined or count == 1:
        yield DistributedContext(rank, count, kind, restarts)
        return
    store, rank, count = next(iter(rendezvous("env://")))
    # torchrun keeps its store over a restart; without a prefix the processes would find their predecessors' addresses.
    store = PrefixStore(f"whycam-{restarts}", store)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    yield DistributedContext(rank, count, kind, restarts)
    # Not after an error: the others would then fail for want of this process before it has said what is wrong.
    dist.destroy_process_group()


class _AllReduceSum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

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


# torch's own annotations leave these out; the names here have types.
_sum_over_processes: Callable[[Tensor], Tensor] = _AllReduceSum.apply
_convert_for_cuda: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of the batch over all processes, on any device.

    torch's ``SyncBatchNorm`` does the same for GPUs only. Statistics are in fp32 at least, mean first, then the
    variance around it, so that several processes agree with one to rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape, normalized per channel."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() / x.shape[1]])
        first = _sum_over_processes(torch.cat([x.sum((0, 2, 3)), count]))
        n = first[-1].detach()
        mean = (first[:-1] / n).view(1, -1, 1, 1)
        centered = x - mean
        var = _sum_over_processes(centered.square().sum((0, 2, 3))) / n
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.flatten(), share)
                self.running_var.lerp_(var * (n / (n - 1)), share)
        scale = (var + self.eps).rsqrt() * (self.weight if self.weight is not None else 1)
        y = centered * scale.view(1, -1, 1, 1)
        if self.bias is not None:
            y = y + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Make every ``BatchNorm2d`` of ``model`` a ``SyncedBatchNorm2d`` with the same parameters; returns ``model``."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # The subclass adds behavior and no state, so the parameters stay the very same objects.
            module.__class__ = SyncedBatchNorm2d
    return model
