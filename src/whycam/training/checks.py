"""What a recipe asks for and the data or the machine cannot do, in one sentence each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from whycam.errors import WhycamError
from whycam.training.device_dataset import DeviceData
from whycam.training.recipe import Recipe

# The ways out of what the hardware cannot do.
SMALLER = "make batch_size or crops smaller"
AGAIN = "start again; --resume goes on from the last state that was saved"


def check_crops(recipe: Recipe, data: DeviceData) -> None:
    """Refuse crops that are larger than the padded images."""
    for _, size in recipe.crops:
        if size > data.side + 2 * recipe.pad:
            raise WhycamError(
                f"recipe: crops of {size} pixels do not fit into images of {data.side} with a pad of {recipe.pad}; "
                "make crops smaller or pad larger"
            )


@contextlib.contextmanager
def enough_for_batchnorm() -> Iterator[None]:
    """Say in our words that a batch was too small: one image whose last stage is a single position has no variance."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise WhycamError(
            "recipe: a batch of one image with crops this small leaves BatchNorm a single value per channel; make "
            "batch_size or crops larger, or leave an incomplete last batch out with drop_last=true"
        ) from error


@contextlib.contextmanager
def able_to_compile(recipe: Recipe) -> Iterator[None]:
    """Say in our words that ``torch.compile``, which starts with the first batch, does not work here."""
    try:
        yield
    except RuntimeError as error:
        if not recipe.compile:
            raise
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise WhycamError(
            f"recipe: compile is true, but torch cannot compile the network here ({reason}); leave it false"
        ) from error
