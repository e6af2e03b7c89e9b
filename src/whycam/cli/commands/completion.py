"""``whycam completion``."""

from __future__ import annotations

import sys
from argparse import Namespace

from whycam.cli.completion import script


def completion(options: Namespace) -> None:
    """Print the completion script of a shell."""
    sys.stdout.write(script("whycam", options.shell))
