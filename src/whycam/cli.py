"""argv → the functions of the other rooms. No logic, and no torch until a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from whycam import __version__
from whycam.errors import WhycamError
from whycam.hardware import within_hardware

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

START = """\
whycam: why does this image classifier get these wrong?

  whycam demo --out demo                     the whole study on bundled weights and images, offline
  whycam data data                           download CIFAR-10
  whycam train --data data --out run         train ResNet-18 by the study's recipe
  whycam study run data --out study          explain every error of a checkpoint on a data set
  whycam explain run cat.png                 explain single images
  whycam serve run                           a page that explains whatever image it is given

whycam --help lists every command, whycam COMMAND --help its options and an example.
"""

TRAINING_DATA_HELP = (
    "CIFAR-10's official archive (binary or python) or its unpacked folder, a Parquet file or folder, "
    "or a folder of class/name.png"
)
DATA_HELP = f"{TRAINING_DATA_HELP}, or 'bundled' (1,000 test images)"
CHECKPOINT_HELP = "a checkpoint folder, a .safetensors or PyTorch file, or the bundled 'cifar10-resnet18'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 bad input, 130 interrupted."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        sys.stdout.write(START)
        return 0
    try:
        with within_hardware(_something_smaller(options)):
            commands = import_module(f"whycam.commands.{options.module}")
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

    def command(name: str, module: str, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(module=module)
        return sub

    _demo(command("demo", "study", "run the study on bundled weights and images, offline", "whycam demo --out demo"))
    _data(command("data", "data", "download CIFAR-10 and verify it", "whycam data data"))
    _summary(command("summary", "models", "print a network's layer table", "whycam summary cifar10-resnet18"))
    _layers(command("layers", "models", "list a network's layers that have a map", "whycam layers cifar10-resnet18"))
    _evaluate(
        command("evaluate", "study", "score a checkpoint on a data set", "whycam evaluate cifar10-resnet18 bundled")
    )
    _study(
        command(
            "study",
            "study",
            "explain every error of a checkpoint on a data set",
            "whycam study run data --out study --layers layer3[-2] layer4[-1] --methods gradcam hirescam",
        )
    )
    _report(command("report", "study", "draw a study's figures and report again", "whycam report study"))
    _explain(
        command(
            "explain",
            "study",
            "explain single images",
            "whycam explain cifar10-resnet18 cat.png --target cat --target dog --out why",
        )
    )
    _serve(
        command(
            "serve",
            "serve",
            "show a study's report, or explain images live, in the browser",
            "whycam serve cifar10-resnet18 --port 8000",
        )
    )
    _methods(command("methods", "models", "list the explanation methods", "whycam methods"))
    _train(command("train", "training", "train a network by a recipe", "whycam train --data data --out run"))
    _lr_find(
        command("lr-find", "training", "find a learning rate by a range test", "whycam lr-find --data data --out lr")
    )
    _json(command("recipes", "training", "list the training recipes and their fields", "whycam recipes"))
    _completion(
        command(
            "completion",
            "completion",
            "print the completion script of a shell",
            "source <(whycam completion bash)",
        )
    )
    return parser


def _common(
    sub: argparse.ArgumentParser, *, batch_size: int | None = None, devices: str = "auto, cpu, cuda, cuda:1, mps"
) -> None:
    sub.add_argument("--device", default="auto", metavar="NAME", help=f"{devices} (default: auto)")
    if batch_size is not None:
        sub.add_argument(
            "--batch-size", type=int, default=batch_size, metavar="N", help=f"images at a time (default: {batch_size})"
        )
    _json(sub)


def _json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _explained(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="written like layer3[-2] or layer3.0 (default: layer2[-2] layer3[-2] layer4[-1])",
    )
    sub.add_argument(
        "--methods", nargs="+", default=["gradcam"], metavar="METHOD", help="see whycam methods (default: gradcam)"
    )


def _compared(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--baseline",
        type=int,
        default=20,
        metavar="N",
        help="correct predictions per class to explain too, for comparison (default: 20)",
    )
    sub.add_argument(
        "--score-images",
        type=int,
        default=32,
        metavar="N",
        help="errors, drawn at random, whose maps are scored by ROAD beside controls; 0 for none (default: 32)",
    )


def _dataset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    sub.add_argument("data", metavar="DATA", help=DATA_HELP)
    sub.add_argument("--split", default="test", metavar="NAME", help="train or test (default: test)")
    sub.add_argument("--limit", type=int, metavar="N", help="the first N images only")


def _demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", default="demo", metavar="DIR", help="the study folder (default: demo)")
    _explained(sub)
    _compared(sub)
    _common(sub, batch_size=64)


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("directory", metavar="DIR", help="where cifar-10-batches-bin goes; made if missing")
    sub.add_argument("--url", metavar="URL", help="a mirror of the official binary archive")
    _json(sub)


def _summary(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default="cifar10-resnet18",
        help=f"{CHECKPOINT_HELP}; or an architecture, resnet18 or resnet34",
    )
    _json(sub)


def _layers(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default="cifar10-resnet18",
        help=f"{CHECKPOINT_HELP}; or an architecture, resnet18 or resnet34",
    )
    _json(sub)


def _evaluate(sub: argparse.ArgumentParser) -> None:
    _dataset(sub)
    _common(sub, batch_size=128)


def _study(sub: argparse.ArgumentParser) -> None:
    _dataset(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="the study folder: new, empty, or to be continued")
    _explained(sub)
    _compared(sub)
    _common(sub, batch_size=64)


def _report(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("study", metavar="STUDY", help="a finished study folder")
    _json(sub)


def _explain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="image files: png, jpeg, webp, bmp, gif, tiff")
    sub.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CLASS",
        help="a class name or index to explain besides the predicted one; may be repeated",
    )
    sub.add_argument("--out", default=".", metavar="DIR", help="where NAME.whycam.png goes (default: here)")
    _explained(sub)
    _common(sub)


def _serve(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="STUDY_OR_CHECKPOINT", help=f"a study folder, or {CHECKPOINT_HELP}")
    sub.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="the network of the study, for its live page (found by itself where it is the bundled one)",
    )
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes any free one (default: 8000)")
    sub.add_argument("--layers", nargs="+", metavar="LAYER", help="the layers to offer (default: every block)")
    sub.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to this host name (.example.org: all below it); may be repeated",
    )
    sub.add_argument(
        "--allow-frame",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin show ours in a frame; may be repeated",
    )
    _common(sub)


def _completion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _methods(sub: argparse.ArgumentParser) -> None:
    _json(sub)


def _recipe(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", required=True, metavar="DATA", help=TRAINING_DATA_HELP)
    sub.add_argument(
        "--recipe",
        default="study",
        metavar="NAME",
        help="study, record, long, cpu (see whycam recipes), or a YAML file of fields (default: study)",
    )
    sub.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="change fields of the recipe: --set lr=0.3 epochs=10",
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")


def _train(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="checkpoint, history and curves")
    sub.add_argument("--seeds", type=int, metavar="K", help="train K seeds from --seed on and report mean and spread")
    sub.add_argument(
        "--validate",
        type=int,
        nargs="?",
        const=5000,
        metavar="N",
        help="report on N held-out training images (default: 5000) instead of the test set, for tuning",
    )
    sub.add_argument("--limit", type=int, metavar="N", help="train on the first N images only")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to DIR/tensorboard too")
    _common(sub, devices="auto, cpu, cuda, cuda:1")


def _lr_find(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    sub.add_argument("--out", default="lr-find", metavar="DIR", help="where figure and numbers go (default: lr-find)")
    sub.add_argument("--start", type=float, default=1e-5, metavar="LR", help="first learning rate (default: 1e-5)")
    sub.add_argument("--end", type=float, default=10.0, metavar="LR", help="last learning rate (default: 10)")
    sub.add_argument("--iterations", type=int, default=200, metavar="N", help="steps, one batch each (default: 200)")
    _common(sub)
