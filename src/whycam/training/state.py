"""A run's resumable state: written atomically, and read without executing code from the file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whycam.data.preprocess import Preprocess
from whycam.errors import WhycamError
from whycam.files import replacing
from whycam.training.recipe import Recipe

STATE_FILE = "state.pt"
FORMAT = 1
# What torch, pickle and json raise on damaged or foreign files.
_DAMAGED: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, LookupError, AttributeError, TypeError)
_DAMAGED += (ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
# Those of version 0.1, whose states must stay resumable.
_PREPROCESS_FIELDS = ("mean", "std", "size", "channels")


@dataclass
class EpochSums:
    """Loss, correct answers and images of the current epoch so far; they stay on the device until they are read."""

    loss: Tensor
    correct: Tensor
    images: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> EpochSums:
        """At the start of an epoch."""
        return cls.of(0.0, 0, 0, device=device)

    @classmethod
    def of(cls, loss: float, correct: int, images: int, *, device: torch.device) -> EpochSums:
        """From saved numbers."""
        return cls(
            torch.tensor(loss, dtype=torch.float64, device=device),
            torch.tensor(correct, dtype=torch.int64, device=device),
            images,
        )


@dataclass(frozen=True)
class Position:
    """How far a run is: ``step`` optimizer steps of ``epoch`` (both from 0) are done."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class RunKey:
    """The identity of a run: a run can only be resumed with the same key.

    Attributes:
        recipe: the resolved recipe ("auto" replaced by the choice).
        seed: of initial weights, order and augmentation.
        data: digest of the training images.
        test_data: digest of the test images.
        preprocess: how images are normalized (``preprocess_key``).
        network: digest of the names and shapes of its parameters and buffers (``parameter_digest``).
    """

    recipe: Recipe
    seed: int
    data: str
    test_data: str
    preprocess: str = ""
    network: str = ""

    def check(self, saved: Mapping[str, Any], path: Path) -> None:
        """Compare with the key in a saved state.

        Raises:
            WhycamError: ``saved`` is the key of another run.
        """
        # An older state may lack fields of today's recipe; from_dict gives them their defaults, which is how they were.
        theirs, mine = Recipe.from_dict(saved["recipe"]).to_dict(), self.recipe.to_dict()
        changed = [f"{name} was {theirs[name]!r} and is {mine[name]!r}" for name in mine if theirs[name] != mine[name]]
        anew = "or another folder to start anew"
        if changed:
            raise WhycamError(
                f"{path}: the run was started with another recipe ({'; '.join(changed)}); give the same recipe to "
                f"resume it, {anew}"
            )
        if saved["seed"] != self.seed:
            raise WhycamError(f"{path}: the run was started with seed {saved['seed']}, not {self.seed}; give that seed")
        for images, then, now in (("training", saved["data"], self.data), ("test", saved["test_data"], self.test_data)):
            if then != now:
                raise WhycamError(
                    f"{path}: the {images} images are not those that the run was started with (SHA-256 {then[:12]}… "
                    f"then, {now[:12]}… now); give the same data to resume it, {anew}"
                )
        # The oldest states have neither of these entries.
        if saved.get("preprocess", self.preprocess) != self.preprocess:
            raise WhycamError(
                f"{path}: the run was started with another preprocessing ({saved['preprocess']}), not "
                f"{self.preprocess}; give the same to resume it, {anew}"
            )
        if saved.get("network", self.network) != self.network:
            raise WhycamError(
                f"{path}: the run was started with another network (its parameters have other names or shapes); "
                f"give the same to resume it, {anew}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"recipe": self.recipe.to_dict()}


@dataclass
class TrainingState:
    """Everything that a run needs to continue as if it had never stopped.

    Attributes:
        key: the run's identity (``RunKey.to_dict``).
        position: the next step.
        tensors: the weights ("model"), the optimizer's ("optimizer") and the averaged weights ("average").
        sums: the current epoch's loss, correct answers and images so far.
        images, seconds: images trained on and working time since the start of the run.
        history: the finished epochs' records.
    """

    key: dict[str, Any]
    position: Position
    tensors: dict[str, dict[str, Tensor]]
    sums: tuple[float, int, int]
    images: int
    seconds: float
    history: list[dict[str, Any]]


def preprocess_key(preprocess: Preprocess) -> str:
    """Preprocessing as text that does not change when ``Preprocess`` gets a new field.

    It is the representation that version 0.1 wrote. A later field is added only where it has not its default.
    """
    shown = [
        f"{field.name}={getattr(preprocess, field.name)!r}"
        for field in fields(preprocess)
        if field.name in _PREPROCESS_FIELDS or getattr(preprocess, field.name) != field.default
    ]
    return f"Preprocess({', '.join(shown)})"


def parameter_digest(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of a network's parameters and buffers."""
    shapes = sorted((name, list(value.shape)) for name, value in model.state_dict().items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def save_state(path: Path, state: TrainingState) -> None:
    """Write ``state`` to ``path``, which always holds either the complete old state or the complete new one.

    Raises:
        WhycamError: the disk is full or the folder cannot be written to; the old state is untouched.
    """
    header = {
        "format": FORMAT,
        "key": state.key,
        "position": asdict(state.position),
        "sums": state.sums,
        "images": state.images,
        "seconds": state.seconds,
        "history": state.history,
    }
    # Serialize in memory first. If torch wrote to the file itself, an interrupt or a full disk would reach it inside a
    # call from C++, where torch replaces the error by its own or ends the process.
    content = io.BytesIO()
    torch.save({"header": json.dumps(header), "tensors": state.tensors}, content)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content.getbuffer())


def load_state(path: Path) -> TrainingState:
    """Read a state; its tensors are on the CPU.

    Raises:
        WhycamError: there is no such file, or it is not a training state.
    """
    if not path.is_file():
        raise WhycamError(f"{path}: there is no training state to resume; start without resuming")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        header = json.loads(content["header"])
        if missing := {"recipe", "seed", "data", "test_data"} - set(header["key"]):
            raise KeyError(*missing)
        if missing := {"model", "optimizer"} - set(content["tensors"]):
            raise KeyError(*missing)
        if header["format"] != FORMAT:
            raise WhycamError(
                f"{path}: the training state has format {header['format']}, this version of whycam reads {FORMAT}"
            )
        return TrainingState(
            key=header["key"],
            position=Position(**header["position"]),
            tensors=content["tensors"],
            sums=tuple(header["sums"]),
            images=header["images"],
            seconds=header["seconds"],
            history=header["history"],
        )
    except _DAMAGED as error:
        reason = type(error).__name__
        raise WhycamError(f"{path}: this is not a whycam training state, or it is damaged ({reason})") from error
