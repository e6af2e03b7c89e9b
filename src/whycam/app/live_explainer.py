"""Explain single images on demand, in the same form as a study with one image, without writing files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.app.work_queue import CancelToken
from whycam.cam.explain import explain
from whycam.cam.explanation import Explanation
from whycam.cam.methods import METHODS
from whycam.cam.methods.registry import Method, method_note
from whycam.cam.targets.class_names import class_index
from whycam.cam.targets.resolve import leading
from whycam.data.batches import resize_center_crop_uint8
from whycam.data.decode import decode_image
from whycam.errors import WhycamError, near_misses
from whycam.models import ModelSpec
from whycam.models.resnet import STUDY_LAYERS, study_layers
from whycam.nn_utils import hookable_modules, hooked, in_eval_mode
from whycam.report.encoding import MapStore
from whycam.report.payload import TARGETS, encode_columns, text
from whycam.report.sprites import pack_images
from whycam.study.tables import image_rows, map_rows, prediction_rows

IMAGE_ID = "image"
"""The id of the one image that there is."""
MAX_PIXELS = 2**24
"""Largest image that is decoded (16 megapixels: 50 MB as RGB)."""


@dataclass(frozen=True)
class Choice:
    """What the visitor wants to see.

    Attributes:
        method: the name of an offered method. Options are not accepted: some make an image cost hours or gigabytes.
        layers: names of offered layers; a method that uses the image alone needs none.
        chosen: name or index of the class that is compared with the predicted one; "" for the runner-up.
    """

    method: str
    layers: tuple[str, ...]
    chosen: str = ""


class LiveExplainer:
    """Explains one image at a time; not thread-safe.

    Args:
        model: as `whycam.load` returns it.
        spec: likewise.
        layers: the layers to offer; None for every residual block (or the last spatial layer of another network).

    Raises:
        WhycamError: a layer does not exist or has no map.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, layers: Sequence[str] | None = None) -> None:
        self._model = model
        self.spec = spec
        self.device = next(model.parameters()).device
        self.layers = self._describe(layers or _residual_blocks(model))
        names = [layer["name"] for layer in self.layers]
        usual = [name for name in STUDY_LAYERS if name in names]
        self.preselected = names if layers or not usual else usual

    def explain(self, content: bytes, choice: Choice, token: CancelToken) -> dict[str, Any]:
        """Explain one image file.

        Args:
            content: the file.
            choice: what is wanted.
            token: checked before each layer runs.

        Returns:
            The chunk and the columns of the report's data block, the method, the name and size of each map (by layer,
            or by whatever stands in a layer's place), the file's size in pixels and the milliseconds spent.

        Raises:
            WhycamError: the file is no readable image, or a layer, method or class is unknown.
            WorkCancelledError: the token was canceled.
        """
        method = _offered(choice.method)
        layers = self._selected(choice.layers, method)
        second = class_index(choice.chosen, self.spec.classes) if choice.chosen else None
        begin = time.perf_counter()
        pixels = decode_image(content, "the image", max_pixels=MAX_PIXELS)
        fitted = resize_center_crop_uint8(
            pixels if pixels.flags.writeable else pixels.copy(), self.spec.preprocess.size
        )[None]
        token.check()
        decoded = time.perf_counter()
        inputs = self.spec.preprocess(fitted.to(self.device))
        with _cancellable(self._model, token):
            if second is None:
                second = self._runner_up(inputs)
            explained = explain(self._model, inputs, layers, method, {"predicted": None, "true": second})
        logits = explained.logits.float().cpu()
        index, label = np.zeros(1, np.int64), np.array([second], np.int64)
        classes = {"predicted": logits.argmax(1).numpy(), "true": label}
        maps = map_rows(index, [IMAGE_ID], classes, explained)
        done = time.perf_counter()
        png = image_rows(index, [IMAGE_ID], self.spec.preprocess.invert(inputs).cpu())["png"][0].as_py()
        grids = _grids(explained)
        rows = prediction_rows(index, [IMAGE_ID], label, logits)
        return {
            "columns": text(encode_columns(rows, len(self.spec.classes))),
            "chunk": {
                "maps": text(MapStore(maps, [IMAGE_ID], [method.name], grids, TARGETS).encode(slice(None))),
                "sheets": [sheet.to_dict(text(sheet.webp)) for sheet in pack_images([(0, png)])],
            },
            "method": {"name": method.name, **method_note(method.name)},
            "layers": grids,
            "file": {"width": int(pixels.shape[1]), "height": int(pixels.shape[0])},
            "ms": {"decode": _ms(begin, decoded), "explain": _ms(decoded, done)},
        }

    def _describe(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        height, width = self.spec.preprocess.size
        channels = 1 if self.spec.preprocess.channels == "L" else 3
        blank = torch.zeros(1, channels, height, width, device=self.device)
        return _grids(explain(self._model, blank, names, "gradcam"))

    def _selected(self, layers: Sequence[str], method: Method) -> list[str] | None:
        """The layers for ``method``, in the network's order; None for a method that uses no layer."""
        offered = [layer["name"] for layer in self.layers]
        for name in layers:
            if name not in offered:
                raise WhycamError(f"layer {name!r} is not offered here{near_misses(name, offered)}")
        if method.scope == "input":
            return None
        selected = [name for name in offered if name in layers]
        if not selected:
            raise WhycamError("no layer is chosen")
        return selected

    def _runner_up(self, inputs: Tensor) -> int:
        """The second most probable class, or the only one.

        It is found before the explanation, so that methods treat it like any other class and both maps are comparable.
        """
        with torch.no_grad(), in_eval_mode(self._model):
            logits = leading(self._model(inputs), len(inputs))
        assert logits is not None  # otherwise the constructor would have failed
        order = logits[0].argsort(descending=True, stable=True)
        return int(order[min(1, len(order) - 1)])


@contextmanager
def _cancellable(model: nn.Module, token: CancelToken) -> Iterator[None]:
    """Inside the block, check ``token`` before each layer of the model runs."""

    def check(_module: nn.Module, _inputs: object) -> None:
        token.check()

    leaves = [module for module in hookable_modules(model) if not any(module.children())]
    with hooked(((leaf, check) for leaf in leaves), before=True):
        yield


def _offered(name: str) -> Method:
    if name not in METHODS:
        raise WhycamError(f"method {name!r} is not offered here{near_misses(name, METHODS)}")
    return METHODS[name]


def _grids(explained: Explanation) -> list[dict[str, Any]]:
    """Name, height and width of the maps, as a study's manifest lists its layers."""
    sizes = {layer: raw.shape[1:] for (_, layer, _), raw in explained.maps.items()}
    return [{"name": layer, "height": height, "width": width} for layer, (height, width) in sizes.items()]


def _residual_blocks(model: nn.Module) -> list[str] | None:
    """Every residual block of a model with the study's layers, counted from the end of its stage as the study does."""
    if study_layers(model) is None:
        return None
    stages = {name: len(list(stage.children())) for name, stage in model.named_children() if name.startswith("layer")}
    return [f"{name}[{index - blocks}]" for name, blocks in stages.items() for index in range(blocks)]


def _ms(begin: float, end: float) -> float:
    return round(1000 * (end - begin), 1)
