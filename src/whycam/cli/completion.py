"""Shell completion. argcomplete reads commands, options, choices and files from the parser itself.

The script that ``whycam completion SHELL`` prints starts ``whycam`` at each press of Tab, with `COMPLETING` set in the
environment. argcomplete is imported in these two cases only, so that all other commands start as fast as without it.
"""

from __future__ import annotations

import argparse
import os

from whycam.errors import missing_extra

SHELLS = ("bash", "zsh", "fish")
COMPLETING = "_ARGCOMPLETE"


def script(program: str, shell: str) -> str:
    """The completion script of ``program`` for one of `SHELLS`.

    Raises:
        MissingExtraError: argcomplete is not installed.
    """
    try:
        from argcomplete.shell_integration import shellcode
    except ModuleNotFoundError as error:
        raise missing_extra("argcomplete", "study", "shell completion") from error
    return f"{shellcode([program], shell=shell).strip()}\n"


def is_completing() -> bool:
    """Whether a shell started this process because its user pressed Tab."""
    return COMPLETING in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Write the possible next words to the shell and end the process."""
    import argcomplete

    # Options are offered after a hyphen only; everywhere else files are what the user usually wants.
    argcomplete.autocomplete(parser, always_complete_options=False)
