"""The command line: argv in, calls of the other rooms out."""

from whycam.cli.main import main

__all__ = ["main"]
