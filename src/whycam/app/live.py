"""A network ready to explain any image, in the report's own terms: a study of one image, held in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whycam.app.desk import Ticket
from whycam.cam.explain import explain
from whycam.cam.explanation import Explanation
from whycam.cam.methods import METHODS
from whycam.cam.methods.registry import Method, method_note
from whycam.cam.targets.class_names import class_index
from whycam.cam.targets.resolve import leading
from whycam.data import open_source
from whycam.data.batches import fit_pixels
from whycam.data.decode import decode_image, encode_png
from whycam.data.preprocess import CIFAR10
from whycam.errors import WhycamError, near_misses
from whycam.models import ModelSpec
from whycam.models.resnet import STUDY_LAYERS, study_layers
from whycam.nn_utils import in_eval_mode
from whycam.report.encoding import MISSING, MapStore
from whycam.report.payload import TARGETS, TOP_CLASSES, display_constants, encode_columns, text
from whycam.report.sprites import pack_images
from whycam.study.tables import image_rows, map_rows, prediction_rows

MAX_PIXELS = 2**24
"""Largest image that is decoded (16 megapixels: 50 MB as RGB)."""
_ID = "image"


@dataclass(frozen=True)
class Choice:
    """What the visitor wants to see.

    Attributes:
        method: one of the names that are offered. Options are not: some make an image cost hours or gigabytes.
        layers: of those that are offered; a method that looks at the image alone needs none.
        chosen: the class beside the predicted one, by name or index; "" for the runner-up.
    """

    method: str
    layers: tuple[str, ...]
    chosen: str = ""


class LiveModel:
    """Explains one image after another, never two at once.

    Args:
        model: as `whycam.load` gives it; it gets hooks that let work in progress be given up.
        spec: likewise.
        layers: what is offered; None for every residual block (or the last spatial layer of another network).

    Raises:
        WhycamError: a layer does not exist or has no map.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, layers: Sequence[str] | None = None) -> None:
        self._model = model
        self._ticket: Ticket | None = None
        self.spec = spec
        self.device = next(model.parameters()).device
        self.layers = self._describe(layers or _blocks(model))
        names = [layer["name"] for layer in self.layers]
        usual = [name for name in STUDY_LAYERS if name in names]
        self.preselected = names if layers or not usual else usual
        for module in model.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(self._check)

    def core(self) -> dict[str, Any]:
        """The page's data block, as a study's report has it, with one image in it that is yet to come."""
        height, width = self.spec.preprocess.size
        classes = list(self.spec.classes)
        waiting = prediction_rows(np.zeros(1, np.int64), [_ID], np.zeros(1, np.int64), torch.zeros(1, len(classes)))
        methods = [{"name": name, "scope": method.scope, **method_note(name)} for name, method in METHODS.items()]
        usual = next(method for method in methods if method["name"] == "gradcam")
        return {
            "classes": classes,
            "methods": [usual],
            "offered": methods,
            "preselected": self.preselected,
            "layers": self.layers,
            "image": {"height": height, "width": width},
            "n": 1,
            "data": "live",
            "ids": [_ID],
            "top": min(TOP_CLASSES, len(classes)),
            "columns": text(encode_columns(waiting, len(classes))),
            "ranges": {},
            "predictedFlags": text(bytes([MISSING]) * len(self.layers)),
            "chunks": [{"start": 0, "stop": 1, "src": None}],
            "samples": _samples(self.spec),
            **display_constants("chosen"),
        }

    def explain(self, content: bytes, choice: Choice, ticket: Ticket) -> dict[str, Any]:
        """Explain one image file.

        Args:
            content: the file.
            choice: what is wanted.
            ticket: work stops when nobody holds it any more.

        Returns:
            The chunk and the columns of the report's data block, the method, the grids that its maps have (by layer,
            or by whatever stands in a layer's place), the file's size in pixels and the milliseconds spent.

        Raises:
            WhycamError: the file is no readable image, or a layer, method or class is unknown.
            AbandonedError: nobody waits for it any more.
        """
        self._ticket = ticket
        method = _offered(choice.method)
        wanted = self._wanted(choice.layers, method)
        second = class_index(choice.chosen, self.spec.classes) if choice.chosen else None
        begin = time.perf_counter()
        pixels = decode_image(content, "the image", max_pixels=MAX_PIXELS)
        fitted = fit_pixels(pixels if pixels.flags.writeable else pixels.copy(), self.spec.preprocess.size)[None]
        ticket.check()
        decoded = time.perf_counter()
        inputs = self.spec.preprocess(fitted.to(self.device))
        if second is None:
            second = self._runner_up(inputs)
        explained = explain(self._model, inputs, wanted, method, {"predicted": None, "true": second})
        logits = explained.logits.float().cpu()
        classes = {
            "predicted": np.array([int(logits[0].argmax())], np.int64),
            "true": np.array([second], np.int64),
        }
        one = np.zeros(1, np.int64)
        maps = map_rows(one, [_ID], classes, explained)
        done = time.perf_counter()
        seen = self.spec.preprocess.invert(inputs).cpu()
        png = image_rows(one, [_ID], seen)["png"][0].as_py()
        grids = _grids(explained)
        bank = MapStore(maps, [_ID], [method.name], grids, TARGETS)
        rows = prediction_rows(one, [_ID], classes["true"], logits)
        return {
            "columns": text(encode_columns(rows, len(self.spec.classes))),
            "chunk": {
                "maps": text(bank.encode(slice(None))),
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

    def _wanted(self, layers: Sequence[str], method: Method) -> list[str] | None:
        """The layers that ``method`` is to look at, in the network's order; None where it looks at none."""
        offered = [layer["name"] for layer in self.layers]
        for name in layers:
            if name not in offered:
                raise WhycamError(f"layer {name!r} is not offered here{near_misses(name, offered)}")
        if method.scope == "input":
            return None
        wanted = [name for name in offered if name in set(layers)]
        if not wanted:
            raise WhycamError("no layer is chosen")
        return wanted

    def _runner_up(self, inputs: Tensor) -> int:
        """The second most probable class, or the only one.

        It is known before anything is explained: methods that make something of their own of a class's score then do
        so for both classes, and the maps can be compared.
        """
        with torch.no_grad(), in_eval_mode(self._model):
            logits = leading(self._model(inputs), len(inputs))
        assert logits is not None  # or the constructor would have had no class to explain
        order = logits[0].argsort(descending=True, stable=True)
        return int(order[min(1, len(order) - 1)])

    def _check(self, _module: nn.Module, _inputs: object) -> None:
        if self._ticket is not None:
            self._ticket.check()


def _offered(name: str) -> Method:
    if name not in METHODS:
        raise WhycamError(f"method {name!r} is not offered here{near_misses(name, METHODS)}")
    return METHODS[name]


def _grids(explained: Explanation) -> list[dict[str, Any]]:
    """Name and cells of everything that there are maps of, as a study's manifest lists layers."""
    sizes = {layer: raw.shape[1:] for (_, layer, _), raw in explained.maps.items()}
    return [{"name": layer, "height": height, "width": width} for layer, (height, width) in sizes.items()]


def _blocks(model: nn.Module) -> list[str] | None:
    """Every residual block, counted from its stage's end as the study does."""
    if study_layers(model) is None:
        return None
    stages = {name: len(list(stage.children())) for name, stage in model.named_children() if name.startswith("layer")}
    return [f"{name}[{index - blocks}]" for name, blocks in stages.items() for index in range(blocks)]


def _samples(spec: ModelSpec) -> list[dict[str, str]]:
    """A bundled image of each class, for a network that was made for them."""
    source = open_source("bundled")
    if tuple(source.classes) != tuple(spec.classes) or spec.preprocess.size != CIFAR10.size:
        return []
    labels = np.asarray(source.labels)
    pictures = source.read([int(np.flatnonzero(labels == index)[0]) for index in range(len(spec.classes))])
    return [
        {"class": name, "png": text(encode_png(picture.permute(1, 2, 0).contiguous().numpy()))}
        for name, picture in zip(spec.classes, pictures, strict=True)
    ]


def _ms(begin: float, end: float) -> float:
    return round(1000 * (end - begin), 1)
