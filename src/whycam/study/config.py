"""The options of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from whycam.errors import WhycamError


def _option(default: int, least: int, refusal: str, *, changes_result: bool = True) -> Any:
    """A number with its smallest value and the sentence that refuses a smaller one."""
    return field(default=default, metadata={"least": least, "refusal": refusal, "changes_result": changes_result})


@dataclass(frozen=True)
class Config:
    """The options of a study.

    Every field is an entry of the manifest's ``config``, and a command-line option of the same name sets it.

    Attributes:
        layers: names of the layers to explain; None for the published study's three (or, in another network, the last
            spatial layer).
        methods: names of methods.
        limit: number of images that the data were cut to, None for all. It is only recorded: `whycam.data.take` cuts.
        batch_size: images at a time; changes the result by rounding only.
        baseline: correct predictions per class that are explained too, for the predicted class alone. The report
            compares the errors' mean maps with theirs.
        score_images: number of errors, drawn at random with a fixed seed, whose maps are scored by ROAD; 0 for none.

    Raises:
        WhycamError: a number is too small.
    """

    layers: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("gradcam",)
    limit: int | None = None
    batch_size: int = _option(64, 1, "the batch size must be at least 1", changes_result=False)
    baseline: int = _option(20, 0, "the baseline must be 0 or more correct predictions per class")
    score_images: int = _option(32, 0, "the maps of 0 or more errors can be scored")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, list):
                object.__setattr__(self, option.name, tuple(value))
            elif "least" in option.metadata and value < option.metadata["least"]:
                raise WhycamError(f"{option.metadata['refusal']}, got {value}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Pick the fields out of a mapping, such as the parsed command line."""
        return cls(**{option.name: options[option.name] for option in fields(cls)})

    def to_manifest(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


WITHOUT_EFFECT = frozenset(option.name for option in fields(Config) if not option.metadata.get("changes_result", True))
"""Options that change nothing but speed: a study may be continued with other values of them."""
