"""From argv to the functions of the other rooms. No logic, and no torch until a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from whycam._version import __version__
from whycam.cli import completion
from whycam.cli.arguments import ARGUMENTS
from whycam.cli.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK
from whycam.errors import WhycamError, within_hardware

START = """\
whycam: find out why your image classifier is wrong.

  whycam demo --out demo                     run the whole study on bundled weights and images, offline
  whycam data data                           download CIFAR-10
  whycam train --data data --out run         train ResNet-18 with the study's recipe
  whycam study run data --out study          explain every error of a checkpoint on a data set
  whycam explain run cat.png                 explain single images
  whycam compare run data --out compared     find out which explanation method to trust on this network
  whycam serve run                           explain your own images in the browser

whycam --help lists all commands. whycam COMMAND --help lists the options of one command, with an example.
"""


COMMANDS = (
    ("demo", "study", "run the study on bundled weights and images, offline",
     "whycam demo --out demo"),
    ("data", "data", "download CIFAR-10 and verify it",
     "whycam data data"),
    ("summary", "models", "print a network's layer table",
     "whycam summary cifar10-resnet18"),
    ("layers", "models", "list the layers of a network that can be explained",
     "whycam layers cifar10-resnet18"),
    ("evaluate", "study", "measure the accuracy of a checkpoint on a data set",
     "whycam evaluate cifar10-resnet18 bundled"),
    ("study", "study", "explain every error of a checkpoint on a data set",
     "whycam study run data --out study --layers layer3[-2] layer4[-1] --methods gradcam hirescam"),
    ("report", "study", "draw the figures and the report of a study again",
     "whycam report study"),
    ("explain", "study", "explain single images",
     "whycam explain cifar10-resnet18 cat.png --target cat --target dog --out why"),
    ("compare", "compare", "compare explanation methods with each other and with maps that ignore the network",
     "whycam compare cifar10-resnet18 bundled --methods gradcam hirescam layercam --out compared"),
    ("serve", "serve", "show the report of a study, or explain images live, in the browser",
     "whycam serve cifar10-resnet18 --port 8000"),
    ("methods", "models", "list the explanation methods",
     "whycam methods"),
    ("measures", "compare", "list the metrics that whycam compare can use",
     "whycam measures"),
    ("train", "training", "train a network with a recipe",
     "whycam train --data data --out run"),
    ("lr-find", "training", "find a learning rate with a range test",
     "whycam lr-find --data data --out lr"),
    ("recipes", "training", "list the training recipes and their fields",
     "whycam recipes"),
    ("completion", "completion", "print the completion script of a shell",
     "source <(whycam completion bash)"),
)  # fmt: skip
"""Name, module in whycam.cli.commands, summary in one line, example."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after ``whycam``; None: those of this process.

    Returns:
        The exit status: 0 done, 2 bad input, 130 interrupted.
    """
    parser = build_parser()
    if completion.is_completing():
        completion.answer(parser)
    options = parser.parse_args(argv)
    if options.command is None:
        sys.stdout.write(START)
        return EXIT_OK
    try:
        with within_hardware(_smaller_request(options)):
            commands = import_module(f"whycam.cli.commands.{options.module}")
            getattr(commands, options.command.replace("-", "_"))(options)
    except WhycamError as error:
        sys.stderr.write(f"whycam: error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stopped:
        advice = str(stopped) or "run the same command again; a study continues where it stopped"
        sys.stderr.write(f"whycam: interrupted; {advice}\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed the pipe. Python would try to flush to it on exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def _smaller_request(options: argparse.Namespace) -> str:
    """The advice for a user whose memory is full."""
    if getattr(options, "batch_size", 1) > 1:
        return f"give a --batch-size below {options.batch_size}"
    return "ask for fewer layers, methods or images at once, or give --device cpu if the GPU's memory is full"


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands and options. Help, completion and the reference page are made from it."""
    parser = argparse.ArgumentParser(
        prog="whycam",
        description="Find out why your image classifier is wrong: train it, find its errors, explain them.",
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
