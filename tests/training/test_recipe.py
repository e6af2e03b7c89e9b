"""Recipes: types, JSON, overrides, and errors."""

from __future__ import annotations

import json

import pytest

from whycam.errors import WhycamError
from whycam.training import RECIPES, Recipe, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_to_json_and_back(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_bundled_recipes():
    assert set(RECIPES) == {"study", "record", "long", "cpu"}
    assert RECIPES["record"].epochs == 20
    assert RECIPES["long"].epochs <= 60
    study = RECIPES["study"]
    assert (study.optimizer, study.epochs, study.batch_size, study.weight_decay) == ("adam", 20, 128, 1e-4)
    assert (study.flip, study.cutout, study.cutout_probability, study.pad, study.pad_mode) == (
        "none",
        16,
        0.5,
        4,
        "zero",
    )
    assert (study.jitter, study.jitter_probability, study.averaging) == (0.2, 0.2, "none")


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("lr=0.3", "lr", 0.3),
        ("lr=3e-1", "lr", 0.3),
        ("epochs = 5", "epochs", 5),
        ("drop_last=no", "drop_last", False),
        ("compile=true", "compile", True),
        ("flip=random", "flip", "random"),
        ("momentum_range=none", "momentum_range", None),
        ("momentum_range=[0.8, 0.9]", "momentum_range", (0.8, 0.9)),
        ("crops=[[0, 16], [0.5, 32]]", "crops", ((0.0, 16), (0.5, 32))),
        ("name=mine", "name", "mine"),
    ],
)
def test_change_a_field_by_text(change, field, value):
    recipe = find_recipe("record", [change])
    assert getattr(recipe, field) == value
    assert type(getattr(recipe, field)) is type(value)
    assert {**recipe.to_dict(), field: None} == {**RECIPES["record"].to_dict(), field: None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate=1", "recipe: there is no field 'learning_rate'"),
        ("epoch=1", "recipe: there is no field 'epoch' (did you mean epochs"),
        ("lr", "recipe: 'lr' is not field=value, for example lr=0.3"),
        ("lr=fast", "recipe: lr is 'fast'; it must be a number"),
        ("lr=nan", "recipe: lr is 'nan'; it must be a number"),
        ("lr=-1", "recipe: lr is -1.0; it must lie from 0 to 1000"),
        ("epochs=2.5", "recipe: epochs is '2.5'; it must be a whole number"),
        ("epochs=0", "recipe: epochs is 0; it must lie from 1 to 100000"),
        ("drop_last=1", "recipe: drop_last is '1'; it must be true or false"),
        ("flip=sometimes", "recipe: flip is 'sometimes'; it must be one of none, random, alternate"),
        ("momentum=1", "recipe: momentum is 1.0; it must be below 1"),
        ("decoupled=false", "recipe: decoupled is false, but muon shrinks weights directly; set decoupled=true"),
        ("sam_from=1", "recipe: sam_from is 1.0; it must be below 1, or sam_radius 0 for never"),
        ("momentum_range=[0.9, 0.8]", "recipe: momentum_range is (0.9, 0.8); it must be (low, high) within [0, 1)"),
        ("momentum_range=0.9", "recipe: momentum_range is 0.9; it must be a list, for example [0.85, 0.95]"),
        ("crops=[[0, 'x']]", "recipe: crops is \"[[0, 'x']]\"; it must be a list"),
        ('crops=[[0, "x"]]', "recipe: crops is 'x'; it must be a whole number"),
        ("crops=24", "recipe: crops is 24; it must be a list, for example [[0, 24], [0.7, 32]]"),
        ("crops=[[0.5, 24]]", "recipe: crops is ((0.5, 24),); it must be pairs (from, size) whose first starts at 0"),
        ("crops=[[0, -1]]", "recipe: crops is ((0.0, -1),); a size is at least 1 pixel, or 0 for the whole image"),
    ],
)
def test_wrong_change_errors(change, message):
    with pytest.raises(WhycamError) as error:
        find_recipe("record", [change])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: record\nname: mine\nlr: 0.3\ncrops: [[0, 24], [0.5, 0]]\nmomentum_range: null\n")
    recipe = find_recipe(str(path), ["epochs=3"])
    assert recipe == RECIPES["record"].override({"name": "mine", "lr": 0.3, "crops": ((0, 24), (0.5, 0)), "epochs": 3})
    path.with_suffix(".json").write_text(json.dumps(recipe.to_dict()))
    assert find_recipe(str(path.with_suffix(".json"))) == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: [", "{path}: this is not YAML"),
        ("- 1", "{path}: a recipe file holds fields and values"),
        ("base: recrod", "{path}: there is no recipe 'recrod' to start from (did you mean record?)"),
        ("base: [study]", "{path}: there is no recipe ['study'] to start from"),
        (3000 * "[", "{path}: this is not YAML"),
        ("lr: true", "{path}: recipe: lr is True; it must be a number"),
        ("!!python/object/apply:os.system [echo]", "{path}: this is not YAML"),
    ],
)
def test_wrong_recipe_file_errors(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(WhycamError) as error:
        find_recipe(str(path))
    assert str(error.value).startswith(message.format(path=path))
    assert "\n" not in str(error.value)


def test_unknown_recipe_errors(tmp_path):
    with pytest.raises(WhycamError, match=r"there is no recipe 'recrod' \(did you mean record\?\), and it is no .yaml"):
        find_recipe("recrod")
    with pytest.raises(WhycamError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        find_recipe(str(tmp_path / "none.yaml"))


def test_crops_and_steps():
    recipe = Recipe(epochs=4, batch_size=32, crops=((0, 12), (0.5, 16), (0.75, 0)))
    assert [recipe.crop_size(epoch, 32) for epoch in range(4)] == [12, 12, 16, 32]
    assert recipe.steps_per_epoch(100) == 3
    assert recipe.override({"drop_last": False}).steps_per_epoch(100) == 4
    assert recipe.steps_per_epoch(10) == 1
