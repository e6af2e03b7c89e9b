"""The manifest: model, data, options and environment of a study, enough to repeat it and to tell studies apart."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from whycam._version import __version__, versions
from whycam.data.source import ImageSource
from whycam.device import device_name
from whycam.files import sha256_of
from whycam.models.checkpoint import ModelSpec
from whycam.models.summary import summarize
from whycam.study.config import WITHOUT_EFFECT
from whycam.study.folder import METRICS
from whycam.study.tables import OPTIONAL, REQUIRED, SCHEMA_VERSION


def describe(
    model: nn.Module,
    spec: ModelSpec,
    source: ImageSource,
    config: dict[str, Any],
    layers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The manifest's entries that are known before the work starts.

    ``key`` is a digest of everything that determines the numbers. Shards of studies with different keys never mix.
    """
    channels = 1 if spec.preprocess.channels == "L" else 3
    described_model = {
        "architecture": spec.architecture,
        "classes": list(spec.classes),
        "preprocess": spec.preprocess.to_dict(),
        "weights_sha256": spec.weights_sha256,
    }
    described_data = {
        "name": source.name,
        "split": source.split,
        "n": len(source),
        "digest": source.digest,
        "classes": list(source.classes),
    }
    decisive = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    key = [SCHEMA_VERSION, __version__, described_model, described_data, decisive]
    return {
        "format": SCHEMA_VERSION,
        "key": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest(),
        "whycam": __version__,
        "config": config,
        "model": described_model
        | {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": dict(spec.training),
            "notes": list(spec.notes),
            "summary": str(summarize(model, (channels, *spec.preprocess.size))),
        },
        "data": described_data,
        "layers": list(layers),
        "versions": versions(),
        "git": _git_commit(),
        "device": device_name(next(model.parameters()).device),
    }


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every finished file of a study."""
    tables = [*REQUIRED, *(table for table in OPTIONAL if table.path(folder).exists())]
    paths = [*(table.path(folder) for table in tables), folder / METRICS]
    return {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in paths}


def peak_memory_mib() -> float:
    """The process's largest resident size so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _git_commit() -> str | None:
    """The commit of whycam's own checkout, or None for an installed package."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
