"""What a study does besides its model and data."""

from __future__ import annotations

from dataclasses import dataclass

from whycam.errors import WhycamError


@dataclass(frozen=True)
class Config:
    """What a study does besides its model and data.

    Attributes:
        layers: where to look; None for the study's three (or the last spatial layer of another network).
        methods: names of methods.
        limit: only for the record: the data were cut to their first so many images.
        batch_size: images at a time; does not change the result beyond rounding.
        baseline: of each class the first so many correct predictions are explained too, for their class alone, so that
            the errors' mean maps have something to be compared with.
        score_images: of so many errors, drawn at random with a fixed seed, every map is scored by ROAD; 0 scores none.
    """

    layers: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("gradcam",)
    limit: int | None = None
    batch_size: int = 64
    baseline: int = 20
    score_images: int = 32

    def __post_init__(self) -> None:
        if self.baseline < 0:
            raise WhycamError(f"the baseline must be 0 or more correct predictions per class, got {self.baseline}")
        if self.score_images < 0:
            raise WhycamError(f"the maps of 0 or more errors can be scored, got {self.score_images}")
        if self.batch_size < 1:
            raise WhycamError(f"the batch size must be at least 1, got {self.batch_size}")
