"""Choose and describe the device; float64 where it has none; glibc's memory settings."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from whycam.errors import WhycamError


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or for "auto" the best one available: CUDA, then MPS, then the CPU.

    Raises:
        WhycamError: there is no such device, or it is not available.
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
    """A description of the device for records: "cuda:0 (NVIDIA H100)", "cpu (AMD EPYC 7B13, 2 threads)"."""
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
    """Whether the device supports float64; Apple's (MPS) does not."""
    return device.type != "mps"


def in_double(tensor: Tensor) -> Tensor:
    """Convert to float64, for sums that are too inexact in single precision.

    If the tensor's device has no float64, the result is on the CPU. Convert results back with ``.to(tensor)``.
    """
    return tensor.double() if has_double(tensor.device) else tensor.cpu().double()


def reuse_freed_memory() -> None:
    """Let this process keep freed memory for its next allocations, if the C library is glibc.

    Training on a CPU frees and allocates tensors of many megabytes in every step. By default each block goes back to
    the operating system, which then spends time on zeroing new pages. With this setting the process's memory never
    shrinks, so whycam's own programs use it, and the library does not impose it on its callers.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28), (_M_MMAP_MAX, 0)):
            mallopt(parameter, value)


# From glibc's malloc.h: never trim, grow by 256 MiB at a time, never use a separate mapping for a large block.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
