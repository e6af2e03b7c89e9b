"""Checkpoints in: the bundled one, whycam's own format, and the layouts people have on disk."""

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

# Wrappers around a network leave these in front of every name (DataParallel and DDP, torch.compile).
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Training scripts put the network under one of these keys.
_NETWORK_KEYS = ("net", "state_dict", "model", "model_state_dict", "model_state", "network")
# No network this loader knows is near it; it stops a small archive that unpacks to terabytes.
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
            holds the state_dict of a CIFAR ResNet-18 or -34, plain or under "net"/"state_dict"/"model", with or
            without ``module.`` and ``_orig_mod.`` prefixes; or your own module, which is used as it is.
        classes: names that override the checkpoint's; as many as there are logits.
        preprocess: overrides the checkpoint's.
        device: where the network goes; the weights are fp32 whatever the file stores.

    Returns:
        The module in eval mode (convolution weights channels-last, which is the faster layout), and its spec. What is
        loaded from a file has the class names as its attribute ``class_names`` too.

    Raises:
        WhycamError: the file is missing, damaged, holds anything besides tensors and plain values, or fits no
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
    model = _build(state, spec, checkpoint)
    spec = dataclasses.replace(
        spec,
        preprocess=preprocess or spec.preprocess,
        classes=tuple(classes) if classes is not None else spec.classes,
        weights_sha256=weights_digest(model.state_dict()),
    )
    outputs = state["linear.bias"].numel()
    if len(spec.classes) != outputs:
        raise WhycamError(
            f"{checkpoint}: the network has {outputs} outputs, but {len(spec.classes)} class names are given"
        )
    # To the type checker a module's attributes are tensors and modules.
    model.class_names = spec.classes  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), spec


def _read(checkpoint: str | Path) -> tuple[dict[str, Tensor], ModelSpec]:
    """The network's tensors and what is known about it, from wherever they lie."""
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
        return _read(path.parent)  # the weights of a checkpoint folder: with its description and its checksum
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
            # Torch warns of unusual pickle protocols; what it cannot read it refuses all the same.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise WhycamError(
            f"{path}: holds something besides tensors and plain values{what}, which loading would execute; save the "
            "state_dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # what is no pickle at all makes the unpickler stumble in any way there is
        raise WhycamError(f"{path}: not a readable PyTorch file, perhaps truncated or of another kind") from error


def _refuse_inflating_archive(path: Path) -> None:
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
    """Find the state_dict in what a training script saved, and take wrappers' prefixes off its names."""
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
    """Recognize an architecture by its tensors' names and say what had to be assumed."""
    architecture = next((name for name in ARCHITECTURES if _matches(state, name)), None)
    if architecture is None:
        raise WhycamError(
            f"{path}: its tensors ({_few(state)}) are those of none of {', '.join(ARCHITECTURES)}; "
            "load your own module in Python and pass it to whycam.explain"
        )
    outputs = len(state["linear.bias"])
    classes = CIFAR10_CLASSES if outputs == 10 else tuple(f"class {index}" for index in range(outputs))
    return ModelSpec(
        architecture=architecture,
        classes=classes,
        notes=(
            f"{path.name} says nothing of its classes and normalization: "
            + (
                "CIFAR-10's are assumed."
                if outputs == 10
                else "numbered classes and CIFAR-10's normalization are assumed."
            ),
        ),
    )


def _matches(state: Mapping[str, Tensor], architecture: str) -> bool:
    """Whether the names are the architecture's; BatchNorm's batch counters may be missing."""
    with torch.device("meta"):
        expected = set(ARCHITECTURES[architecture](10).state_dict())
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    # The classifier's bias tells how many classes there are, so it is looked at before anything is built.
    return expected - counters <= set(state) <= expected and state["linear.bias"].ndim == 1


def _build(state: Mapping[str, Tensor], spec: ModelSpec, checkpoint: str | Path) -> nn.Module:
    if spec.architecture not in ARCHITECTURES:
        raise WhycamError(
            f"{checkpoint}: unknown architecture {spec.architecture!r}{near_misses(spec.architecture, ARCHITECTURES)}"
        )
    if not _matches(state, spec.architecture):
        raise WhycamError(f"{checkpoint}: its tensors ({_few(state)}) are not those of {spec.architecture}")
    model = ARCHITECTURES[spec.architecture](state["linear.bias"].numel())
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
    return model


def _few(state: Mapping[str, Tensor]) -> str:
    names = list(state)
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")
