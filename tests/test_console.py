"""What the command line prints for machines is what a strict reader takes."""

from __future__ import annotations

import json

import pytest
import torch

from whycam.cam.explanation import Explanation
from whycam.cli import console
from whycam.cli.commands.study import _map_facts


def strictly(text):
    """Read JSON as its standard has it: without NaN and the infinities."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null(capsys):
    nan, inf = float("nan"), float("inf")
    console.say_json({"a": nan, "b": [1.5, -inf, {"c": (inf, 2)}], "d": "NaN", "e": None, "f": True, "g": {"h": 0.1}})
    assert strictly(capsys.readouterr().out) == {
        "a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None, "f": True, "g": {"h": 0.1},
    }  # fmt: skip


def test_the_facts_of_a_broken_map_can_be_read(capsys):
    key = ("gradcam", "layer4", "predicted")
    raw = torch.tensor([[[1.0, torch.nan]]])
    explained = Explanation({key: raw}, torch.zeros(1, 2), {"predicted": torch.zeros(1)}, torch.zeros(1, 3, 4, 4), {})
    console.say_json({"maps": _map_facts(explained)})
    (fact,) = strictly(capsys.readouterr().out)["maps"]
    assert fact["flags"] == ["non-finite", "coarse"]
    assert (fact["raw_min"], fact["raw_sum"], fact["score"]) == (None, None, 0.0)


def test_the_strict_reader_is_strict():
    with pytest.raises(ValueError, match="NaN"):
        strictly('{"a": NaN}')
