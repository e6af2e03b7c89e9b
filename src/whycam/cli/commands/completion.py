"""``whycam completion``."""

from __future__ import annotations

import sys
from argparse import Namespace

from whycam.cli.completion import script
from whycam.cli.main import build_parser


def completion(options: Namespace) -> None:
    """Print a shell's completion script."""
    sys.stdout.write(script(build_parser(), options.shell))
