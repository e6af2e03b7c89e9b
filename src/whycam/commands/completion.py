"""``whycam completion``."""

from __future__ import annotations

import sys
from argparse import Namespace

from whycam.cli import build_parser
from whycam.completion import script


def completion(options: Namespace) -> None:
    """Print a shell's completion script."""
    sys.stdout.write(script(build_parser(), options.shell))
