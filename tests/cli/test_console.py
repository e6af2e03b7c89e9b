"""``--json`` prints standard JSON, which has no NaN and no infinity."""

from __future__ import annotations

import json

import pytest
import torch

from whycam.cam.explanation import Explanation
from whycam.cli import console
from whycam.cli.commands.study import _map_facts


def read_strictly(text):
    """Read JSON by its standard, which has no NaN and no infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_nan_and_infinity_become_null(capsys):
    nan, inf = float("nan"), float("inf")
    console.say_json({"a": nan, "b": [1.5, -inf, {"c": (inf, 2)}], "d": "NaN", "e": None, "f": True, "g": {"h": 0.1}})
    assert read_strictly(capsys.readouterr().out) == {
        "a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None, "f": True, "g": {"h": 0.1},
    }  # fmt: skip


def test_facts_of_a_map_with_nan_are_standard_json(capsys):
    key = ("gradcam", "layer4", "predicted")
    raw = torch.tensor([[[1.0, torch.nan]]])
    explained = Explanation({key: raw}, torch.zeros(1, 2), {"predicted": torch.zeros(1)}, torch.zeros(1, 3, 4, 4), {})
    console.say_json({"maps": _map_facts(explained)})
    (fact,) = read_strictly(capsys.readouterr().out)["maps"]
    assert fact["flags"] == ["non-finite", "coarse"]
    assert (fact["raw_min"], fact["raw_sum"], fact["score"]) == (None, None, 0.0)


def test_the_strict_reader_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        read_strictly('{"a": NaN}')
