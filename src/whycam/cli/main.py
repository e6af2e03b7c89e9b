"""argv → the functions of the other rooms. No logic, and no torch until a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from whycam._version import __version__
from whycam.cli.arguments import ARGUMENTS
from whycam.errors import WhycamError, within_hardware

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

START = """\
whycam: why does this image classifier get these wrong?

  whycam demo --out demo                     the whole study on bundled weights and images, offline
  whycam data data                           download CIFAR-10
  whycam train --data data --out run         train ResNet-18 by the study's recipe
  whycam study run data --out study          explain every error of a checkpoint on a data set
  whycam explain run cat.png                 explain single images
  whycam compare run data --out compared     which explanation method to trust on this network
  whycam serve run                           a page that explains whatever image it is given

whycam --help lists every command, whycam COMMAND --help its options and an example.
"""


COMMANDS = (
    ("demo", "study", "run the study on bundled weights and images, offline",
     "whycam demo --out demo"),
    ("data", "data", "download CIFAR-10 and verify it",
     "whycam data data"),
    ("summary", "models", "print a network's layer table",
     "whycam summary cifar10-resnet18"),
    ("layers", "models", "list a network's layers that have a map",
     "whycam layers cifar10-resnet18"),
    ("evaluate", "study", "score a checkpoint on a data set",
     "whycam evaluate cifar10-resnet18 bundled"),
    ("study", "study", "explain every error of a checkpoint on a data set",
     "whycam study run data --out study --layers layer3[-2] layer4[-1] --methods gradcam hirescam"),
    ("report", "study", "draw a study's figures and report again",
     "whycam report study"),
    ("explain", "study", "explain single images",
     "whycam explain cifar10-resnet18 cat.png --target cat --target dog --out why"),
    ("compare", "compare", "judge explanation methods on a checkpoint and a data set, beside controls",
     "whycam compare cifar10-resnet18 bundled --methods gradcam hirescam layercam --out compared"),
    ("serve", "serve", "show a study's report, or explain images live, in the browser",
     "whycam serve cifar10-resnet18 --port 8000"),
    ("methods", "models", "list the explanation methods",
     "whycam methods"),
    ("measures", "compare", "list what methods are compared by",
     "whycam measures"),
    ("train", "training", "train a network by a recipe",
     "whycam train --data data --out run"),
    ("lr-find", "training", "find a learning rate by a range test",
     "whycam lr-find --data data --out lr"),
    ("recipes", "training", "list the training recipes and their fields",
     "whycam recipes"),
    ("completion", "completion", "print the completion script of a shell",
     "source <(whycam completion bash)"),
)  # fmt: skip
"""Name, module of whycam.cli.commands, one line, example."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 bad input, 130 interrupted."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        sys.stdout.write(START)
        return 0
    try:
        with within_hardware(_something_smaller(options)):
            commands = import_module(f"whycam.cli.commands.{options.module}")
            getattr(commands, options.command.replace("-", "_"))(options)
    except WhycamError as error:
        sys.stderr.write(f"whycam: error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"whycam: interrupted; {str(stopped) or 'the same command continues where it can'}\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _something_smaller(options: argparse.Namespace) -> str:
    """What to ask for instead when memory is full."""
    if getattr(options, "batch_size", 1) > 1:
        return f"give a --batch-size below {options.batch_size}"
    return "ask for less at once, or give --device cpu if it is a GPU's"


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar, so that help and documentation come from one place."""
    parser = argparse.ArgumentParser(
        prog="whycam",
        description="Why does this image classifier get these wrong? Train, find the errors, explain them.",
        epilog="Exit status: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=28),
    )
    parser.add_argument("--version", action="version", version=f"whycam {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module, summary, example in COMMANDS:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(module=module)
        ARGUMENTS[name](sub)
    return parser
