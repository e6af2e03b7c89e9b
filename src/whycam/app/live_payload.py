"""The live page's data block. It has the keys of a report's, which `whycam.report.payload.Payload.core` builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from whycam.app.live_explainer import IMAGE_ID, LiveExplainer
from whycam.cam.methods import METHODS
from whycam.cam.methods.registry import method_note
from whycam.data import open_source
from whycam.data.decode import encode_png
from whycam.data.preprocess import CIFAR10
from whycam.report.encoding import MISSING
from whycam.report.payload import page_core, text
from whycam.study.tables import prediction_rows

if TYPE_CHECKING:
    from whycam.models import ModelSpec


def live_core(live: LiveExplainer) -> dict[str, Any]:
    """The data block of a report with one image, whose maps are not there yet, and what the visitor may choose."""
    classes = list(live.spec.classes)
    empty = prediction_rows(np.zeros(1, np.int64), [IMAGE_ID], np.zeros(1, np.int64), torch.zeros(1, len(classes)))
    methods = [{"name": name, "scope": method.scope, **method_note(name)} for name, method in METHODS.items()]
    core = page_core(
        classes, [method for method in methods if method["name"] == "gradcam"], live.layers,
        size=live.spec.preprocess.size, n=1, data="live", ids=[IMAGE_ID], predictions=empty, ranges={},
        flags=bytes([MISSING]) * len(live.layers), second="chosen",
    )  # fmt: skip
    return core | {
        "offered": methods,
        "preselected": live.preselected,
        "chunks": [{"start": 0, "stop": 1, "src": None}],
        "samples": _samples(live.spec),
    }


def _samples(spec: ModelSpec) -> list[dict[str, str]]:
    """A bundled image of each class, if the model has the classes and input size of the bundled images."""
    source = open_source("bundled")
    if tuple(source.classes) != tuple(spec.classes) or spec.preprocess.size != CIFAR10.size:
        return []
    labels = np.asarray(source.labels)
    pictures = source.read([int(np.flatnonzero(labels == index)[0]) for index in range(len(spec.classes))])
    return [
        {"class": name, "png": text(encode_png(picture.permute(1, 2, 0).contiguous().numpy()))}
        for name, picture in zip(spec.classes, pictures, strict=True)
    ]
