"""Options of a study: each field is checked, is recorded in the manifest and can be set on the command line."""

from __future__ import annotations

from dataclasses import fields

import pytest

from whycam import WhycamError
from whycam.cli.main import build_parser
from whycam.study import Config
from whycam.study.config import WITHOUT_EFFECT

STUDY = ["study", "model", "data", "--out", "s"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": 0}, "the batch size must be at least 1, got 0"),
        ({"baseline": -2}, "the baseline must be 0 or more correct predictions per class, got -2"),
        ({"score_images": -1}, "the maps of 0 or more errors can be scored, got -1"),
    ],
)
def test_numbers_that_are_too_small_are_refused(values, sentence):
    with pytest.raises(WhycamError, match=f"^{sentence}$"):
        Config(**values)


def test_the_manifest_holds_every_field():
    config = Config(layers=["a", "b"], batch_size=7)
    assert config == Config(layers=("a", "b"), batch_size=7)
    assert config.to_manifest() == {
        "layers": ["a", "b"], "methods": ["gradcam"], "limit": None, "batch_size": 7, "baseline": 20,
        "score_images": 32,
    }  # fmt: skip
    assert set(config.to_manifest()) == {option.name for option in fields(Config)}
    assert {"batch_size"} == WITHOUT_EFFECT


def test_the_command_line_sets_every_field():
    parser = build_parser()
    options = parser.parse_args(
        [*STUDY, "--layers", "a", "b", "--limit", "9", "--baseline", "3", "--score-images", "4"]
    )
    assert Config.from_options(vars(options)) == Config(("a", "b"), limit=9, baseline=3, score_images=4)
    assert Config.from_options(vars(parser.parse_args(STUDY))) == Config()
