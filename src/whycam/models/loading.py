"""Load checkpoints: the bundled one, whycam's own format, and the common layouts of training scripts."""

from __future__ import annotations

import dataclasses
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whycam.data.cifar import CIFAR10_CLASSES
from whycam.data.preprocess import CIFAR10, Preprocess
from whycam.errors import WhycamError, near_misses
from whycam.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, ModelSpec, read_config, weights_digest
from whycam.models.resnet import ARCHITECTURES

BUNDLED = {"cifar10-resnet18": Path(__file__).parent.parent / "assets" / "cifar10-resnet18"}

# DataParallel, DDP and torch.compile put these in front of every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Training scripts store the state_dict under one of these keys.
_NETWORK_KEYS = ("net", "state_dict", "model", "model_state_dict", "model_state", "network")
# Far above every known network: it stops a small archive that unpacks to terabytes.
_MAX_UNPACKED_BYTES = 8 * 2**30


def load(
    checkpoint: str | Path | nn.Module,
    *,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, ModelSpec]:
    """Load a network, ready to be evaluated and explained.

    Args:
        checkpoint: the name of bundled weights ("cifar10-resnet18"); a folder with ``model.safetensors`` and
            ``config.json``; a ``.safetensors`` file; a PyTorch file (``.pt``, ``.pth``, ``.ckpt``, ``.bin``) that
            holds the state_dict of one of ``ARCHITECTURES``, plain or under "net"/"state_dict"/"model", with or
            without ``module.`` and ``_orig_mod.`` prefixes; or your own module, which is used as it is.
        classes: names that override the checkpoint's; one per logit.
        preprocess: overrides the checkpoint's.
        device: where the network goes; the weights are fp32, whatever type the file stores.

    Returns:
        The module in eval mode and its spec. A module that was loaded from a file has channels-last convolution
        weights, the faster layout, and the class names in its attribute ``class_names``.

    Raises:
        WhycamError: the file is missing or damaged, holds anything besides tensors and plain values, or fits no
            known architecture.
    """
    if isinstance(checkpoint, nn.Module):
        spec = ModelSpec(
            architecture=type(checkpoint).__name__,
            classes=tuple(classes or ()),
            preprocess=preprocess or CIFAR10,
            weights_sha256=weights_digest(checkpoint.state_dict()),
        )
        return checkpoint.to(device).eval(), spec

    state, spec = _read(checkpoint)
    model, outputs = _build(state, spec, checkpoint)
    spec = dataclasses.replace(
        spec,
        preprocess=preprocess or spec.preprocess,
        classes=tuple(classes) if classes is not None else spec.classes,
        weights_sha256=weights_digest(model.state_dict()),
    )
    if len(spec.classes) != outputs:
        raise WhycamError(
            f"{checkpoint}: the network has {outputs} outputs, but {len(spec.classes)} class names are given"
        )
    # The type checker knows only tensors and modules as a module's attributes.
    model.class_names = spec.classes  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), spec


def _read(checkpoint: str | Path) -> tuple[dict[str, Tensor], ModelSpec]:
    """The network's tensors and its spec, from a bundled name, a folder or a file."""
    path = BUNDLED.get(str(checkpoint), Path(checkpoint))
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise WhycamError(
                f"{path}: a checkpoint folder holds {WEIGHTS_FILE} and {CONFIG_FILE}; {WEIGHTS_FILE} is missing"
            )
        spec = read_config(path / CONFIG_FILE)
        state = _read_safetensors(path / WEIGHTS_FILE)
        if spec.weights_sha256 and weights_digest(state) != spec.weights_sha256:
            raise WhycamError(
                f"{path / WEIGHTS_FILE}: the weights are not those that {CONFIG_FILE} describes (checksum mismatch): "
                "fetch or write the checkpoint again"
            )
        return state, spec
    if not path.is_file():
        known = near_misses(str(checkpoint), BUNDLED)
        raise WhycamError(f"{checkpoint}: no such checkpoint; give a file, a folder, or a bundled name{known}")
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        return _read(path.parent)  # a checkpoint folder's weights: read its description and checksum too
    if path.suffix == ".safetensors":
        state = _network_tensors(_read_safetensors(path), path)
    else:
        state = _network_tensors(_read_pytorch(path), path)
    return state, _infer_spec(state, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WhycamError(f"{path}: not a readable safetensors file, perhaps truncated ({error})") from error


def _read_pytorch(path: Path) -> Any:
    _refuse_inflating_archive(path)
    try:
        with warnings.catch_warnings():
            # Torch warns of unusual pickle protocols, but it also refuses those that it cannot read.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise WhycamError(
            f"{path}: holds something besides tensors and plain values{what}, which loading would execute; save the "
            "state_dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # the unpickler can raise any exception on bytes that are not a pickle
        raise WhycamError(f"{path}: not a readable PyTorch file, perhaps truncated or of another kind") from error


def _refuse_inflating_archive(path: Path) -> None:
    """Refuse an archive that would unpack to far more than its own size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    # NotImplementedError: a damaged directory asks for a version of the format that does not exist.
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise WhycamError(f"{path}: not a readable PyTorch file, perhaps truncated or of another kind") from error
    if unpacked > _MAX_UNPACKED_BYTES or unpacked > 100 * path.stat().st_size + 2**20:
        raise WhycamError(
            f"{path}: would unpack to {unpacked / 2**30:.1f} GiB, which no checkpoint of ours does: refused"
        )


def _network_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state_dict in a training script's checkpoint, and remove wrappers' prefixes from its names."""
    for key in _NETWORK_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        keys = f"; it has {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, Mapping) else ""
        raise WhycamError(f"{path}: no state_dict in it, neither plain nor under {', '.join(_NETWORK_KEYS)}{keys}")
    tensors = {str(name): value for name, value in content.items()}
    while prefix := next((p for p in _WRAPPER_PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors


def _infer_spec(state: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """Recognize the architecture by the tensors' names, and note what had to be assumed."""
    found = {name: n for name, known in ARCHITECTURES.items() if (n := known.num_classes(state)) is not None}
    if not found:
        raise WhycamError(
            f"{path}: its tensors ({_few(state)}) are those of none of {', '.join(ARCHITECTURES)}; "
            "load your own module in Python and pass it to whycam.explain"
        )
    architecture, outputs = next(iter(found.items()))
    ten = outputs == len(CIFAR10_CLASSES)
    assumed = "CIFAR-10's are assumed" if ten else "numbered classes and CIFAR-10's normalization are assumed"
    return ModelSpec(
        architecture=architecture,
        classes=CIFAR10_CLASSES if ten else tuple(f"class {index}" for index in range(outputs)),
        notes=(f"{path.name} says nothing of its classes and normalization: {assumed}.",),
    )


def _build(state: Mapping[str, Tensor], spec: ModelSpec, checkpoint: str | Path) -> tuple[nn.Module, int]:
    """The network with the weights of ``state``, and its number of classes."""
    architecture = ARCHITECTURES.get(spec.architecture)
    if architecture is None:
        raise WhycamError(
            f"{checkpoint}: unknown architecture {spec.architecture!r}{near_misses(spec.architecture, ARCHITECTURES)}"
        )
    outputs = architecture.num_classes(state)
    if outputs is None:
        raise WhycamError(f"{checkpoint}: its tensors ({_few(state)}) are not those of {spec.architecture}")
    model = architecture(outputs)
    for name, target in model.state_dict().items():
        source = state.get(name)
        if source is None:
            continue
        if source.shape != target.shape:
            raise WhycamError(
                f"{checkpoint}: {name} has the shape {tuple(source.shape)}; {spec.architecture} for 32×32 input "
                f"needs {tuple(target.shape)}"
            )
        if source.is_floating_point() != target.is_floating_point():
            raise WhycamError(f"{checkpoint}: {name} holds {source.dtype} values; a network needs {target.dtype} ones")
        if source.is_floating_point() and not bool(source.isfinite().all()):
            raise WhycamError(
                f"{checkpoint}: {name} holds NaN or infinite values; the network was not trained to an end"
            )
        target.copy_(source)
    return model, outputs


def _few(state: Mapping[str, Tensor]) -> str:
    """The first names, for an error message."""
    names = list(state)
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")
