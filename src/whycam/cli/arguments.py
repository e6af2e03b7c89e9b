"""The arguments and options of every command. No torch, no logic."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from whycam.cli.completion import SHELLS

TRAINING_DATA_HELP = (
    "CIFAR-10's official archive (binary or python), its unpacked folder, a Parquet file, a folder of Parquet files, "
    "or a folder of class/name.png"
)
DATA_HELP = f"{TRAINING_DATA_HELP}; or 'bundled' (1,000 test images)"
CHECKPOINT_HELP = "a checkpoint folder, a .safetensors or PyTorch file, or the bundled 'cifar10-resnet18'"

COMPARED_METHODS = ("gradcam", "hirescam", "layercam", "gradcam++", "eigencam")


def _add_common(
    sub: argparse.ArgumentParser, *, batch_size: int | None = None, devices: str = "auto, cpu, cuda, cuda:1, mps"
) -> None:
    sub.add_argument("--device", default="auto", metavar="NAME", help=f"{devices} (default: auto)")
    if batch_size is not None:
        sub.add_argument(
            "--batch-size", type=int, default=batch_size, metavar="N", help=f"images per batch (default: {batch_size})"
        )
    _add_json(sub)


def _add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_layers_and_methods(sub: argparse.ArgumentParser, *, methods: Sequence[str] = ("gradcam",)) -> None:
    sub.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="the layers to explain, such as layer3[-2] or layer3.0 (default: layer2[-2] layer3[-2] layer4[-1])",
    )
    sub.add_argument(
        "--methods",
        nargs="+",
        default=list(methods),
        metavar="METHOD",
        help=f"the explanation methods; whycam methods lists them (default: {' '.join(methods)})",
    )


def _add_study_samples(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--baseline",
        type=int,
        default=20,
        metavar="N",
        help="also explain N correct predictions per class, to compare the errors with (default: 20)",
    )
    sub.add_argument(
        "--score-images",
        type=int,
        default=32,
        metavar="N",
        help="score the maps of N random errors and two controls with ROAD, which removes pixels and reads the "
        "probability; 0: no scores (default: 32)",
    )


def _add_dataset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    sub.add_argument("data", metavar="DATA", help=DATA_HELP)
    sub.add_argument("--split", default="test", metavar="NAME", help="train or test (default: test)")
    sub.add_argument("--limit", type=int, metavar="N", help="use only the first N images")


def _add_recipe(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", required=True, metavar="DATA", help=TRAINING_DATA_HELP)
    sub.add_argument(
        "--recipe",
        default="study",
        metavar="NAME",
        help="study, record, long or cpu (whycam recipes lists them), or a YAML file of fields (default: study)",
    )
    sub.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="change fields of the recipe: --set lr=0.3 epochs=10",
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="the random seed (default: 0)")


def _demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", default="demo", metavar="DIR", help="the study folder (default: demo)")
    _add_layers_and_methods(sub)
    _add_study_samples(sub)
    _add_common(sub, batch_size=64)


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "directory", metavar="DIR", help="the folder to unpack cifar-10-batches-bin into; created if missing"
    )
    sub.add_argument("--url", metavar="URL", help="download the official binary archive from this mirror")
    _add_json(sub)


def _network(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default="cifar10-resnet18",
        help=f"{CHECKPOINT_HELP}; or an architecture: resnet18 or resnet34 (default: cifar10-resnet18)",
    )
    _add_json(sub)


def _evaluate(sub: argparse.ArgumentParser) -> None:
    _add_dataset(sub)
    _add_common(sub, batch_size=128)


def _study(sub: argparse.ArgumentParser) -> None:
    _add_dataset(sub)
    sub.add_argument(
        "--out", required=True, metavar="DIR", help="the study folder: new, empty, or an interrupted study to continue"
    )
    _add_layers_and_methods(sub)
    _add_study_samples(sub)
    _add_common(sub, batch_size=64)


def _report(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("study", metavar="STUDY", help="a finished study folder")
    _add_json(sub)


def _explain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="image files: png, jpeg, webp, bmp, gif, tiff")
    sub.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CLASS",
        help="also explain this class, a name or an index; may be repeated (the predicted class is always explained)",
    )
    sub.add_argument(
        "--out", default=".", metavar="DIR", help="where pictures go, as NAME.whycam.png (default: the current folder)"
    )
    _add_layers_and_methods(sub)
    _add_common(sub)


def _compare(sub: argparse.ArgumentParser) -> None:
    _add_dataset(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder for the table, the scores and the figure")
    _add_layers_and_methods(sub, methods=COMPARED_METHODS)
    sub.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="the metrics to compute; whycam measures lists them (default: those marked there)",
    )
    sub.add_argument("--images", type=int, default=32, metavar="N", help="draw N images at random (default: 32)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="the seed of all random choices (default: 0)")
    _add_common(sub, batch_size=64)


def _serve(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="STUDY_OR_CHECKPOINT", help=f"a study folder, or {CHECKPOINT_HELP}")
    sub.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="the network of the study, for the live page (not needed for the bundled network)",
    )
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen here (default: 127.0.0.1)")
    sub.add_argument(
        "--port", type=int, default=8000, metavar="N", help="listen on this port; 0: any free port (default: 8000)"
    )
    sub.add_argument("--layers", nargs="+", metavar="LAYER", help="the layers to offer (default: every block)")
    sub.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to this host name (.example.org: to all names below it); may be repeated",
    )
    sub.add_argument(
        "--allow-frame",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin show the pages in a frame; may be repeated",
    )
    _add_common(sub)


def _completion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=SHELLS, help=f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}")


def _train(sub: argparse.ArgumentParser) -> None:
    _add_recipe(sub)
    sub.add_argument(
        "--out", required=True, metavar="DIR", help="the folder for the checkpoint, the history and the curves"
    )
    sub.add_argument(
        "--seeds", type=int, metavar="K", help="train with K seeds, counted from --seed; report mean and spread"
    )
    sub.add_argument(
        "--validate",
        type=int,
        nargs="?",
        const=5000,
        metavar="N",
        help="for tuning: hold out N training images (default: 5000) and report on them instead of on the test set",
    )
    sub.add_argument("--limit", type=int, metavar="N", help="train on the first N images only")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events to DIR/tensorboard")
    _add_common(sub, devices="auto, cpu, cuda, cuda:1")


def _lr_find(sub: argparse.ArgumentParser) -> None:
    _add_recipe(sub)
    sub.add_argument(
        "--out", default="lr-find", metavar="DIR", help="the folder for figure and numbers (default: lr-find)"
    )
    sub.add_argument("--start", type=float, default=1e-5, metavar="LR", help="first learning rate (default: 1e-5)")
    sub.add_argument("--end", type=float, default=10.0, metavar="LR", help="last learning rate (default: 10)")
    sub.add_argument("--iterations", type=int, default=200, metavar="N", help="steps of one batch each (default: 200)")
    _add_common(sub)


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
    "methods": _add_json,
    "measures": _add_json,
    "train": _train,
    "lr-find": _lr_find,
    "recipes": _add_json,
    "completion": _completion,
}
"""For each command the function that adds its arguments to a parser."""
