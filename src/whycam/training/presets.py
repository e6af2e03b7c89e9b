"""The recipes that come with whycam, and how to find one by name, read one from YAML and change its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whycam.errors import WhycamError, missing_extra, near_misses
from whycam.training.recipe import Recipe

STUDY = Recipe(
    name="study",
    epochs=20,
    batch_size=128,
    drop_last=False,
    optimizer="adam",
    lr=2.1e-3,
    momentum=0.95,
    momentum_range=(0.85, 0.95),
    warmup=5 / 20,
    lr_start=1 / 100,
    lr_end=1 / 100 / 100,
    weight_decay=1e-4,
    decoupled=False,
    decay_all=True,
    label_smoothing=0.0,
    pad=4,
    pad_mode="zero",
    flip="none",
    cutout=16,
    cutout_probability=0.5,
    jitter=0.2,
    jitter_probability=0.2,
    averaging="none",
    precision="fp32",
)
"""The recipe of the published study that whycam repeats: 92.14% after 20 epochs."""

RECORD = Recipe(
    name="record",
    epochs=20,
    batch_size=512,
    optimizer="muon",
    lr=0.06,
    other_rate=15.0,
    momentum=0.85,
    weight_decay=5e-4,
    cutout=6,
    label_smoothing=0.1,
    sam_radius=0.012,
)
"""Twenty epochs: the known techniques for short trainings, with values that were searched on held-out images."""

LONG = RECORD.override({"name": "long", "epochs": 60, "lr": 0.045, "cutout": 12, "sam_radius": 0.0})
"""Sixty epochs, with a lower learning rate and larger holes; sharpness-aware steps were not measured for it."""

CPU = Recipe(
    name="cpu",
    epochs=15,
    batch_size=128,
    lr=0.2,
    weight_decay=5e-4,
    crops=((0.0, 24), (10 / 15, 0)),
    label_smoothing=0.1,
    evaluate_every=5,
)
"""For a few CPU cores: fewer epochs, 24-pixel crops first, whole images in the last third."""

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (STUDY, RECORD, LONG, CPU)}


def find_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe called ``name``, or the one in the YAML file ``name``, with ``changes`` such as ``lr=0.3``.

    A YAML file holds fields and their values. ``base: record`` names the recipe to start from; without it, missing
    fields have their defaults. JSON is YAML, so a recipe that was saved as JSON can be read too.

    Raises:
        WhycamError: there is no such recipe, file or field, or a value does not fit.
    """
    path = Path(name)
    if name in RECIPES:
        recipe = RECIPES[name]
    elif path.suffix in (".yaml", ".yml", ".json"):
        recipe = _read(path)
    else:
        raise WhycamError(f"recipe: there is no recipe {name!r}{near_misses(name, RECIPES)}, and it is no .yaml file")
    values: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise WhycamError(f"recipe: {change!r} is not field=value, for example lr=0.3")
        values[field.strip()] = value.strip()
    return recipe.override(values)


def _read(path: Path) -> Recipe:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_extra("pyyaml", "train", "reading a recipe file") from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WhycamError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WhycamError(f"{path}: this is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise WhycamError(f"{path}: a recipe file holds fields and values, for example 'base: record' and 'lr: 0.3'")
    base = values.pop("base", None)
    if base is not None and (not isinstance(base, str) or base not in RECIPES):
        raise WhycamError(f"{path}: there is no recipe {base!r} to start from{near_misses(str(base), RECIPES)}")
    try:
        return (Recipe() if base is None else RECIPES[base]).override(values)
    except WhycamError as error:
        raise WhycamError(f"{path}: {error}") from error
