"""The exceptions that a user sees. The message is the whole error output."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec


class WhycamError(Exception):
    """An error in the input or the environment that the user can correct.

    The message is one sentence that names the offending thing and the way out; the command line prints it to
    standard error and exits with status 2. Faults of whycam itself are ordinary exceptions instead.
    """


class NoSpaceError(WhycamError):
    """The disk or the quota is full. Its sentence ends in "run the same command again"."""


class DivergedError(WhycamError):
    """Training diverged: the loss or the weights are NaN or infinite."""


class MissingExtraError(WhycamError):
    """An optional package is needed and not installed."""


# Import name → package name, of the packages that an extra installs.
_STUDY_PACKAGES = {
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "rich": "rich",
}
_APP_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn"}


def require_study_packages(purpose: str) -> None:
    """Check for the ``study`` packages before the work starts, not after minutes of it.

    Raises:
        MissingExtraError: one of the ``study`` extra's packages is not installed.
    """
    require_packages(_STUDY_PACKAGES, "study", purpose)


def require_app_packages(purpose: str) -> None:
    """Check for the packages that serving needs.

    Raises:
        MissingExtraError: one of the ``app`` extra's packages is not installed.
    """
    require_study_packages(purpose)
    require_packages(_APP_PACKAGES, "app", purpose)


def require_packages(packages: Mapping[str, str], extra: str, purpose: str) -> None:
    """Check for packages of an extra, given as import name → package name.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for module, package in packages.items():
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise missing_extra(package, extra, purpose)


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Name the package that ``purpose`` needs and the extra that installs it."""
    return MissingExtraError(f"{purpose} needs {package}, which is not installed: pip install 'whycam[{extra}]'")


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size below 1.

    Raises:
        WhycamError: it is.
    """
    if batch_size < 1:
        raise WhycamError(f"the batch size must be at least 1, got {batch_size}")


def near_misses(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """A phrase such as `` (did you mean layer3.0 or layer3.1?)``, or all known names if none is similar."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return f" (did you mean {_either(close)}?)"
    if 0 < len(names) <= 40:
        return f" (there {'is' if len(names) == 1 else 'are'} {', '.join(names)})"
    return ""


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


# The messages of NumPy, torch's allocators (CPU on Linux and Windows, CUDA, Metal) and cuBLAS for full memory.
_FULL = re.compile(
    r"unable to allocate|can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) ?(bytes|[KMGTP]i?B)", re.IGNORECASE)


class HardwareError(WhycamError):
    """The machine failed or ran out of memory; a smaller job or another try may succeed."""


@contextlib.contextmanager
def within_hardware(smaller: str, again: str = "start the same command again") -> Iterator[None]:
    """Turn full memory or a GPU failure inside the block into one sentence.

    Args:
        smaller: what to do when memory is full, such as "give a smaller --batch-size".
        again: what to do when the GPU failed; the process cannot use the GPU again after that.

    Raises:
        HardwareError: memory ran out or the GPU failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or _FULL.search(text):
            raise HardwareError(f"{_shortage(text)}; {smaller}") from error
        # Compared by name, because older versions of torch have no torch.AcceleratorError.
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
