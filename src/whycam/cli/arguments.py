"""What every command of the command line takes; no torch, no logic."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

TRAINING_DATA_HELP = (
    "CIFAR-10's official archive (binary or python) or its unpacked folder, a Parquet file or folder, "
    "or a folder of class/name.png"
)
DATA_HELP = f"{TRAINING_DATA_HELP}, or 'bundled' (1,000 test images)"
CHECKPOINT_HELP = "a checkpoint folder, a .safetensors or PyTorch file, or the bundled 'cifar10-resnet18'"

COMPARED = ("gradcam", "hirescam", "layercam", "gradcam++", "eigencam")


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


def _explained(sub: argparse.ArgumentParser, *, methods: Sequence[str] = ("gradcam",)) -> None:
    sub.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="written like layer3[-2] or layer3.0 (default: layer2[-2] layer3[-2] layer4[-1])",
    )
    sub.add_argument(
        "--methods",
        nargs="+",
        default=list(methods),
        metavar="METHOD",
        help=f"see whycam methods (default: {' '.join(methods)})",
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


def _network(sub: argparse.ArgumentParser) -> None:
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


def _compare(sub: argparse.ArgumentParser) -> None:
    _dataset(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="where table, scores and figure go")
    _explained(sub, methods=COMPARED)
    sub.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="see whycam measures (default: those that it marks)",
    )
    sub.add_argument("--images", type=int, default=32, metavar="N", help="how many to draw at random (default: 32)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)")
    _common(sub, batch_size=64)


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


ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": _demo,
    "data": _data,
    "summary": _network,
    "layers": _network,
    "evaluate": _evaluate,
    "study": _study,
    "report": _report,
    "explain": _explain,
    "compare": _compare,
    "serve": _serve,
    "methods": _json,
    "measures": _json,
    "train": _train,
    "lr-find": _lr_find,
    "recipes": _json,
    "completion": _completion,
}
"""By command, what adds its arguments to a parser."""
