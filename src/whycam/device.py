"""Which device to work on, and how its memory is handled."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from whycam.errors import WhycamError


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or for "auto" the best one there is: CUDA, then MPS, then the CPU.

    Raises:
        WhycamError: no such device, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        # Reading a value back also refuses "meta", whose tensors hold none.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WhycamError(f"device {name!r} is not available here ({reason}); use cpu or auto") from error
    return device


def device_name(device: torch.device) -> str:
    """What a record says about the device: "cuda:0 (NVIDIA H100)", "cpu (AMD EPYC 7B13, 2 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({_processor()}, {threads} thread{'s' if threads > 1 else ''})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def has_double(device: torch.device) -> bool:
    """Whether the device computes in float64; Apple's does not."""
    return device.type != "mps"


def in_double(tensor: Tensor) -> Tensor:
    """As float64, for sums that lose too much in single precision; on the CPU where the tensor's own device has none.

    What is computed from it goes back by ``.to(tensor)``.
    """
    return tensor.double() if has_double(tensor.device) else tensor.cpu().double()


def reuse_freed_memory() -> None:
    """Let this process keep freed memory for its next allocations, where the C library is glibc.

    Training on a CPU frees and allocates tensors of many megabytes in every step. By default each goes back to the
    operating system, which hands out zeroed pages again: a part of every step that computes nothing. The price is that
    the process's memory never shrinks, so this is for programs of ours and not for a library's caller.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28), (_M_MMAP_MAX, 0)):
            mallopt(parameter, value)


# From glibc's malloc.h: never trim, grow by 256 MiB at a time, never use a mapping of its own for a large block.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
