"""What the hardware could not do, in one sentence: too little memory, a GPU that failed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from whycam.errors import WhycamError

# What NumPy, torch's allocators (CPU on Linux and Windows, CUDA, Metal) and cuBLAS say when there is no memory left.
_FULL = re.compile(
    r"unable to allocate|can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) ?(bytes|[KMGTP]i?B)", re.IGNORECASE)


class HardwareError(WhycamError):
    """The machine could not do what was asked; something smaller or another try may succeed."""


@contextlib.contextmanager
def within_hardware(smaller: str, again: str = "start the same command again") -> Iterator[None]:
    """Say in our words that memory ran out or that the GPU failed inside the block.

    Args:
        smaller: the way out when memory is full, such as "give a smaller --batch-size".
        again: the way out when the GPU failed, which a process does not survive.

    Raises:
        HardwareError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or _FULL.search(text):
            raise HardwareError(f"{_shortage(text)}; {smaller}") from error
        # torch.AcceleratorError, by its name: there are versions of torch without it.
        if type(error).__name__ == "AcceleratorError":
            raise HardwareError(f"the GPU failed ({text.strip().splitlines()[0]}); {again}") from error
        raise


def _shortage(text: str) -> str:
    where = "the GPU's memory" if re.search(r"CUDA|CUBLAS|MPS", text) else "memory"
    found = _ASKED.search(text)
    if found is None:
        return f"{where} is full"
    amount, unit = float(found[1]), found[2]
    size = f"{amount / 2**20:,.0f} MiB" if unit.lower() == "bytes" else f"{found[1]} {unit}"
    return f"{where} is full: {size} more were asked for"
