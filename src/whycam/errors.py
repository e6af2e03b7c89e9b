"""The one exception a user sees: its message is the whole error output."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec


class WhycamError(Exception):
    """A mistake in the input or the surroundings that the user can mend.

    The message is one sentence that names the offending thing and the way out; the command line prints it to
    standard error and exits with status 2. Faults of whycam itself are ordinary exceptions instead.
    """


class NoSpaceError(WhycamError):
    """The disk or the quota is full. Its sentence ends in "run the same command again"."""


class DivergedError(WhycamError):
    """A training came to numbers that are none."""


class MissingExtraError(WhycamError):
    """An optional package is needed and not installed."""


# What the extras install, by the name that is imported.
_STUDY_PACKAGES = {
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "rich": "rich",
    "sklearn": "scikit-learn",
}
_APP_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn"}


def require_study_packages(purpose: str) -> None:
    """Refuse now what would fail for want of a package after minutes of work.

    Raises:
        MissingExtraError: one of the ``study`` extra's packages is not installed.
    """
    _require(_STUDY_PACKAGES, "study", purpose)


def require_app_packages(purpose: str) -> None:
    """The same for what serving needs.

    Raises:
        MissingExtraError: one of the ``app`` extra's packages is not installed.
    """
    require_study_packages(purpose)
    _require(_APP_PACKAGES, "app", purpose)


def _require(packages: Mapping[str, str], extra: str, purpose: str) -> None:
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


def near_misses(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """A phrase such as `` (did you mean layer3.0 or layer3.1?)``, or all known names where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return f" (did you mean {_either(close)}?)"
    if 0 < len(names) <= 40:
        return f" (there {'is' if len(names) == 1 else 'are'} {', '.join(names)})"
    return ""


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


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
