"""A run's resumable state: written atomically, read back without running any code in it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from whycam.errors import WhycamError
from whycam.training.recipe import Recipe

STATE_FILE = "state.pt"
FORMAT = 1


@dataclass
class Meters:
    """Sums over the part of an epoch that is done; they stay on the device until they are read."""

    loss: Tensor
    correct: Tensor
    images: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Meters:
        """Nothing seen yet."""
        return cls(torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device))


@dataclass(frozen=True)
class Position:
    """Where a run is: ``step`` optimiser steps of ``epoch`` (both from 0) are done."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class RunKey:
    """What a run must still agree with when it continues.

    Attributes:
        recipe: the resolved recipe ("auto" replaced by what was chosen).
        seed: decides initial weights, order and augmentation.
        data: digest of the training images.
        test_data: digest of the test images.
    """

    recipe: Recipe
    seed: int
    data: str
    test_data: str

    def check(self, saved: Mapping[str, Any], path: Path) -> None:
        """Raise one clear sentence if ``saved`` (a state's key) is another run."""
        theirs, mine = dict(saved["recipe"]), self.recipe.to_dict()
        changed = [
            f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
            for name in mine | theirs
            if theirs.get(name) != mine.get(name)
        ]
        if changed:
            raise WhycamError(
                f"{path}: the run was started with another recipe ({'; '.join(changed)}); give the same recipe to "
                "resume it, or another folder to start anew"
            )
        for name, what in (("data", "training images"), ("test_data", "test images"), ("seed", "seed")):
            if saved[name] != getattr(self, name):
                raise WhycamError(
                    f"{path}: the run was started with another {what}"
                    if name == "seed"
                    else f"{path}: the {what} are not those that the run was started with "
                    f"(SHA-256 {str(saved[name])[:12]}… then, {str(getattr(self, name))[:12]}… now); "
                    "give the same data to resume it, or another folder to start anew"
                )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"recipe": self.recipe.to_dict()}


@dataclass
class State:
    """Everything a run needs to continue as though it had never stopped."""

    key: dict[str, Any]
    position: Position
    tensors: dict[str, dict[str, Tensor]]
    images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, state: State) -> None:
    """Write ``state`` to ``path``; whatever happens, ``path`` holds either the old state or the new one, whole."""
    header = {
        "format": FORMAT,
        "key": state.key,
        "position": asdict(state.position),
        "images": state.images,
        "seconds": state.seconds,
        "history": state.history,
    }
    with replacing(path) as file:
        torch.save({"header": json.dumps(header), "tensors": state.tensors}, file)


def load_state(path: Path) -> State:
    """Read a state; its tensors come back on the CPU.

    Raises:
        WhycamError: there is no such file, or it is not a training state.
    """
    if not path.is_file():
        raise WhycamError(f"{path}: there is no training state to resume; start without resuming")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        header = json.loads(content["header"])
        if header["format"] != FORMAT:
            raise WhycamError(
                f"{path}: the training state has format {header['format']}, this version of whycam reads {FORMAT}"
            )
        return State(
            key=header["key"],
            position=Position(**header["position"]),
            tensors=content["tensors"],
            images=header["images"],
            seconds=header["seconds"],
            history=header["history"],
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as e:
        raise WhycamError(f"{path}: this is not a whycam training state, or it is damaged ({type(e).__name__})") from e


@contextlib.contextmanager
def replacing(path: Path) -> Any:
    """Open a temporary file beside ``path`` that replaces it, flushed to disk, when the block ends well.

    Raises:
        WhycamError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if os_error := _os_error(error):
            raise WhycamError(
                f"{path}: cannot be written ({os_error.strerror}); free some space or choose another folder, "
                "then resume: what was saved before is intact"
            ) from error
        raise


def _os_error(error: BaseException) -> OSError | None:
    """The operating system's error behind ``error``: torch's writer wraps it in errors of its own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None
