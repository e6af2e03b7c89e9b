"""The one exception a user sees: its message is the whole error output."""

from collections.abc import Mapping
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
