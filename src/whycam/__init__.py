"""whycam: why does an image classifier decide what it decides? Grad-CAM and its family, exact and fast.

Start with `whycam.load` and `whycam.explain`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whycam._version import __version__

if TYPE_CHECKING:
    from whycam.cam import (
        Binary,
        Boxes,
        ClassScore,
        Explainer,
        Explanation,
        Factorization,
        Finer,
        Layout,
        LogProbability,
        Margin,
        Output,
        Predicted,
        Probability,
        ReST,
        Segmentation,
        Similarity,
        WholeOutput,
        explain,
        factorize,
        load_explanation,
    )
    from whycam.data import Preprocess, open_source
    from whycam.errors import WhycamError
    from whycam.models import ModelSpec, load, save_checkpoint, summarize
    from whycam.study import Study

# Where each public name lives. Names are imported on first use, so that `whycam --help` answers without torch.
_HOMES = {
    "WholeOutput": "whycam.cam",
    "Similarity": "whycam.cam",
    "Segmentation": "whycam.cam",
    "ReST": "whycam.cam",
    "Output": "whycam.cam",
    "LogProbability": "whycam.cam",
    "Layout": "whycam.cam",
    "Finer": "whycam.cam",
    "Binary": "whycam.cam",
    "Boxes": "whycam.cam",
    "ClassScore": "whycam.cam",
    "Explainer": "whycam.cam",
    "Explanation": "whycam.cam",
    "Factorization": "whycam.cam",
    "Margin": "whycam.cam",
    "ModelSpec": "whycam.models",
    "Predicted": "whycam.cam",
    "Preprocess": "whycam.data",
    "Probability": "whycam.cam",
    "Study": "whycam.study",
    "WhycamError": "whycam.errors",
    "explain": "whycam.cam",
    "factorize": "whycam.cam",
    "load": "whycam.models",
    "load_explanation": "whycam.cam",
    "open_source": "whycam.data",
    "save_checkpoint": "whycam.models",
    "summarize": "whycam.models",
}

__all__ = [
    "Binary",
    "Boxes",
    "ClassScore",
    "Explainer",
    "Explanation",
    "Factorization",
    "Finer",
    "Layout",
    "LogProbability",
    "Margin",
    "ModelSpec",
    "Output",
    "Predicted",
    "Preprocess",
    "Probability",
    "ReST",
    "Segmentation",
    "Similarity",
    "Study",
    "WholeOutput",
    "WhycamError",
    "__version__",
    "explain",
    "factorize",
    "load",
    "load_explanation",
    "open_source",
    "save_checkpoint",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whycam' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
