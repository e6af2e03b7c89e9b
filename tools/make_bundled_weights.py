"""Put a training run's weights into the package: as fp16, with their config and a model card with the measured scores.

    python tools/make_bundled_weights.py RUN CIFAR10 [--seeds SEEDS]

RUN is a finished run of ``whycam train`` with seed 0; other seeds are refused, so that the weights are not the best of
several. CIFAR10 is anything that whycam opens as CIFAR-10, with the same test images as the run. The run's record holds
the scores of the fp32 weights; the fp16 weights are evaluated here, in the chosen views. The card states both. SEEDS is
a folder with the runs of all seeds of the recipe, this run included: the card states their mean and spread.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_table import changes, find_runs, groups

import whycam
from whycam.data import ImageSource
from whycam.errors import WhycamError
from whycam.models.checkpoint import save_checkpoint
from whycam.training import Recipe, Spread
from whycam.training.device_dataset import DeviceDataset
from whycam.training.evaluation import VIEWS, Evaluation, evaluate_model

FOLDER = Path(__file__).resolve().parent.parent / "src" / "whycam" / "assets" / "cifar10-resnet18"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; write weights, config and card; return the exit status."""
    try:
        make(argv)
    except WhycamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def make(argv: Sequence[str] | None) -> None:
    """As `main`.

    Raises:
        WhycamError: the run has another seed than 0, or other test images.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("cifar10")
    parser.add_argument("--seeds", type=Path)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(argv)
    model, spec = whycam.load(options.run)
    test = whycam.open_source(options.cifar10, "test")
    data = DeviceDataset(test, spec.preprocess, torch.device("cpu"))
    training = dict(spec.training)
    if training.get("seed") != 0:
        raise WhycamError(
            f"{options.run}: its seed is {training.get('seed')}; the package ships seed 0, not a chosen one"
        )
    if training["test_data_sha256"] != test.digest:
        raise WhycamError(f"{options.cifar10}: its test images are not those that {options.run} was tested on")
    seeds = of_all_seeds(options.seeds, training) if options.seeds else None
    single = {view: Evaluation.from_dict(values) for view, values in training["evaluations"].items()}
    half = half_precision(model)
    stored = {view: evaluate_model(half, data, view=view) for view in options.views}
    training["evaluations_fp32"] = training["evaluations"]
    training["evaluations"] = {view: result.to_dict() for view, result in stored.items()}
    spec = dataclasses.replace(spec, training=training)
    save_checkpoint(options.out, half, spec, dtype=torch.float16)
    (options.out / "README.md").write_text(card(spec.training, spec.classes, test, single, stored, seeds))
    for view, result in stored.items():
        sys.stdout.write(f"{view:<5} fp32 {_right(single.get(view))}, fp16 {_right(result)}\n")


def of_all_seeds(folder: Path, training: dict[str, Any]) -> Spread:
    """The plain accuracy of a run's recipe on its test images, over all seeds in ``folder``.

    Raises:
        WhycamError: the run is not in ``folder``.
    """
    mine = (training["seed"], training["evaluations"]["plain"]["accuracy"])
    recipe = Recipe.from_dict(training["recipe"])
    for group in groups(find_runs([folder])):
        same_recipe = group[0].recipe is not None and not changes(group[0].recipe, recipe)
        if same_recipe and mine in [(run.seed, run.accuracy["plain"]) for run in group]:
            return Spread.of([run.accuracy["plain"] for run in group])
    raise WhycamError(f"{folder}: the run whose weights are to be shipped is not among these")


def _right(result: Evaluation | None) -> str:
    return "not measured" if result is None else f"{result.correct:,} ({result.accuracy:.2%})"


def _quality(result: Evaluation | None) -> str:
    return "– | –" if result is None else f"{result.loss:.4f} | {result.ece:.4f}"


def half_precision(model: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to fp16; it computes in fp32, like the bundled network."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for value in copied.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return copied.eval()


def card(
    training: dict[str, Any],
    classes: tuple[str, ...],
    test: ImageSource,
    single: dict[Any, Evaluation],
    stored: dict[Any, Evaluation],
    seeds: Spread | None,
) -> str:
    """The model card, in Markdown; its numbers are computed here or read from the run's record."""
    recipe, plain = training["recipe"], stored["plain"]
    seconds = training["seconds"]
    spent = f"{seconds:.0f} seconds" if seconds < 600 else f"{seconds / 3600:.2f} hours"
    views = {"plain": "plain", "flip": "with the mirror image", "six": "six views"}
    accuracy = "\n".join(
        f"| {name} | {_right(single.get(view))} | {_right(stored.get(view))} | {_quality(stored.get(view))} |"
        for view, name in views.items()
    )
    per_class = "\n".join(
        f"| {name} | {share:.1%} |" for name, share in zip(classes, plain.per_class, strict=True) if share is not None
    )
    weights = "weights" if training["weights"] == "last" else f"{training['weights'].upper()} weights"
    smoothed = " Label smoothing makes it less confident than it is right." if recipe["label_smoothing"] else ""
    changed = {name: value for name, value in recipe.items() if name not in ("name", "architecture")}
    if seeds is None or seeds.sd is None:
        spread = "One run, seed 0, n = 1: no spread over seeds was measured for these weights."
    else:
        spread = (
            f"Over {seeds.n} seeds the plain accuracy is {seeds.mean:.2%} ± {seeds.sd:.2%} (fp32 weights, sample "
            "standard deviation); these are the weights of seed 0, not of the best seed."
        )
    return f"""\
# cifar10-resnet18

ResNet-18 for 32×32 input (11,173,962 parameters), trained on CIFAR-10's training images by the recipe
`{recipe["name"]}`: {recipe["epochs"]} epochs, the {weights} after the last one. Neither the
epoch nor the seed was chosen by the test set.

## Measured

On the {len(test):,} official test images, computed in fp32 from the run's own weights and from the fp16 form that the
package ships:

| view | right, fp32 weights | right, fp16 weights | cross-entropy | calibration error |
|---|---|---|---|---|
{accuracy}

Cross-entropy (nats, no smoothing) and expected calibration error (15 bins) are of the fp16 weights. "Plain" is one
forward pass per image and the number to compare with; the others average views of each image. `whycam evaluate
cifar10-resnet18 CIFAR10` gives the plain numbers again.

{spread}

| class | right, plain |
|---|---|
{per_class}

## Training

- Recipe: `{json.dumps(changed)}`
- Seed {training["seed"]}; {training["images"]:,} images in {spent} by the clock on a
  {training["device"]} device, processes: {training["processes"]}, arithmetic {recipe["precision"]},
  torch {training["torch"]}.
- Training images SHA-256 `{training["train_data_sha256"]}`, test images `{training["test_data_sha256"]}`
  (digests over labels and pixels, whatever file they come from).
- `config.json` holds the whole record: the recipe, one line per epoch, all evaluations.

## Intended use and limits

Made for studying explanations of image classifiers: to repeat and better the study that whycam starts from, to compare
methods, to try the library without training anything. It knows ten classes, in 32×32 color images like CIFAR-10's;
on anything else its answers mean nothing, however confident.{smoothed}
Some of its errors on the test set are the labels' (54 of 10,000 are confirmed wrong, Northcutt et al., 2021).

CIFAR-10: Krizhevsky, 2009, "Learning Multiple Layers of Features from Tiny Images".
"""


if __name__ == "__main__":
    sys.exit(main())
