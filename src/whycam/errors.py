"""The one exception a user sees: its message is the whole error output."""


class WhycamError(Exception):
    """A mistake in the input or the surroundings that the user can mend.

    The message is one sentence that names the offending thing and the way out; the command line prints it to
    standard error and exits with status 2. Faults of whycam itself are ordinary exceptions instead.
    """


class MissingExtraError(WhycamError):
    """An optional package is needed and not installed."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Name the package that ``purpose`` needs and the extra that installs it."""
    return MissingExtraError(f"{purpose} needs {package}, which is not installed: pip install 'whycam[{extra}]'")
