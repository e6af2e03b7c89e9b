"""whycam's own checkpoint format: a folder with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whycam.data.preprocess import CIFAR10, Preprocess
from whycam.data.source import ImageSource
from whycam.errors import WhycamError
from whycam.files import write_bytes, writing

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1


@dataclass(frozen=True)
class ModelSpec:
    """A network without its weights: architecture, classes and preprocessing.

    Attributes:
        architecture: a name in ``whycam.models.ARCHITECTURES``, or the class name of your own module.
        classes: class names in the order of the logits.
        preprocess: how pixels become input.
        training: the training record as it was written (recipe, epochs, accuracy …); empty when unknown.
        weights_sha256: digest of the weights (names, shapes and fp32 values), independent of the file's number type.
        notes: what had to be assumed on loading, one sentence each, to be shown to the user.
    """

    architecture: str
    classes: tuple[str, ...]
    preprocess: Preprocess = CIFAR10
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    notes: tuple[str, ...] = ()


def save_checkpoint(
    folder: str | Path, model: nn.Module, spec: ModelSpec, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write ``model.safetensors`` and ``config.json``; each file is either complete or absent.

    Args:
        folder: created if missing.
        model: its state_dict is written; tensors are copied to the CPU.
        spec: its ``weights_sha256`` is ignored; the digest is computed here.
        dtype: how floating-point weights are stored; float16 halves the file.

    Returns:
        The folder.

    Raises:
        WhycamError: the folder cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    config = {
        "format": FORMAT,
        "architecture": spec.architecture,
        "classes": list(spec.classes),
        "preprocess": spec.preprocess.to_dict(),
        "weights_sha256": weights_digest(tensors),
        "training": dict(spec.training),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # The weights first, so that every config.json lies beside the weights that it describes.
    write_bytes(folder / WEIGHTS_FILE, save(tensors))
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    return folder


def read_config(path: Path) -> ModelSpec:
    """Read a ``config.json``.

    Raises:
        WhycamError: it is missing, not JSON, or lacks an entry.
    """
    try:
        values = json.loads(path.read_bytes())
        if values["format"] != FORMAT:
            raise WhycamError(
                f"{path}: checkpoint format {values['format']}, but this whycam reads format {FORMAT}: update whycam"
            )
        classes = values["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise TypeError("classes must be a list of names")
        return ModelSpec(
            architecture=str(values["architecture"]),
            classes=tuple(classes),
            preprocess=Preprocess.from_dict(values["preprocess"]),
            training=dict(values.get("training") or {}),
            weights_sha256=str(values.get("weights_sha256", "")),
        )
    except OSError as error:
        raise WhycamError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WhycamError(f"{path}: not a whycam checkpoint description ({error!r})") from error


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values (floats as fp32): equal values in fp16 and in fp32 have the same digest."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        value = value.float() if value.is_floating_point() else value.long()
        state.update(f"{name}:{tuple(value.shape)}".encode())
        state.update(value.contiguous().numpy().data)
    return state.hexdigest()


def check_classes(spec: ModelSpec, source: ImageSource) -> None:
    """Refuse data with other classes than the network's.

    Raises:
        WhycamError: there are more or fewer classes, or the same names in another order.
    """
    if len(spec.classes) != len(source.classes):
        raise WhycamError(
            f"the network has {len(spec.classes)} classes, {source.name} has {len(source.classes)}: "
            "they do not belong together"
        )
    ours = {name.lower(): index for index, name in enumerate(spec.classes)}
    for index, name in enumerate(source.classes):
        # Other names for the same class (car, automobile) are common; another order would give wrong results silently.
        if ours.get(name.lower(), index) != index:
            raise WhycamError(
                f"class {index} is {spec.classes[index]!r} for the network and {name!r} in {source.name}: "
                "the classes are in another order"
            )
