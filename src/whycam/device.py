"""Which device to work on."""

from __future__ import annotations

import torch

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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WhycamError(f"device {name!r} is not available here ({reason}); use cpu or auto") from error
    return device
