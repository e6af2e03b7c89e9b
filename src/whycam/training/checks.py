"""Errors about recipes that the data or the machine cannot satisfy, in one sentence each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from whycam.errors import WhycamError
from whycam.training.device_dataset import DeviceDataset
from whycam.training.distributed import DistributedContext
from whycam.training.recipe import Recipe

# The ways out that error messages name.
USE_LESS_MEMORY = "make batch_size or crops smaller"
START_AGAIN = "start again; --resume goes on from the last state that was saved"


def check_crops(recipe: Recipe, data: DeviceDataset) -> None:
    """Refuse crops that are larger than the padded images."""
    for _, size in recipe.crops:
        if size > data.side + 2 * recipe.pad:
            raise WhycamError(
                f"recipe: crops of {size} pixels do not fit into images of {data.side} with a pad of {recipe.pad}; "
                "make crops smaller or pad larger"
            )


def check_batch_size(recipe: Recipe, dist: DistributedContext) -> None:
    """Refuse batches that leave a process without an image."""
    if recipe.batch_size < dist.world_size:
        raise WhycamError(
            f"recipe: batch_size is {recipe.batch_size}, less than the {dist.world_size} processes that share a "
            "batch; raise it or start fewer"
        )


@contextlib.contextmanager
def explain_batchnorm_errors() -> Iterator[None]:
    """Replace torch's error about a batch that is too small: one image with a single position has no variance."""
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
def explain_compile_errors(recipe: Recipe) -> Iterator[None]:
    """Replace the errors of ``torch.compile``, which compiles in the first batch."""
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
