"""Explain single image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from whycam.cam.explain import Explainer
from whycam.cam.explanation import Explanation
from whycam.cam.targets.class_names import class_index
from whycam.cam.targets.classification import TargetLike
from whycam.data.decode import decode_image
from whycam.models.checkpoint import ModelSpec
from whycam.models.resnet import study_layers


@dataclass(frozen=True, eq=False)
class ExplainedImage:
    """An image file with its prediction and its maps.

    Attributes:
        path: the file.
        ranking: (class name, probability), most probable first.
        explanation: the maps, a batch of one image.
    """

    path: Path
    ranking: tuple[tuple[str, float], ...]
    explanation: Explanation


def explain_files(
    model: nn.Module,
    spec: ModelSpec,
    paths: Sequence[Path],
    *,
    layers: Sequence[str] | None,
    methods: Sequence[str],
    targets: Sequence[str] = (),
) -> Iterator[ExplainedImage]:
    """Explain each file for its predicted class, and for each named one.

    Args:
        model: the network, as `whycam.load` returns it.
        spec: its description, from the same call.
        paths: image files.
        layers: names of the layers to explain; None for the published study's three (or, in another network, the last
            spatial layer).
        methods: names of methods.
        targets: class names or indices.

    Raises:
        WhycamError: a file is not a readable image, or a layer, method or class is unknown.
    """
    wanted: dict[str, TargetLike] = {"predicted": None}
    wanted |= {spec.classes[index]: index for index in (class_index(name, spec.classes) for name in targets)}
    explainer = Explainer(model, layers or study_layers(model), methods, wanted)
    device = next(model.parameters()).device
    # All files are read before any is explained, so that a bad one is reported at once.
    inputs = [spec.preprocess(read_image(path).to(device)) for path in paths]

    def results() -> Iterator[ExplainedImage]:
        for path, image in zip(paths, inputs, strict=True):
            explained = explainer(image)
            probabilities = explained.logits[0].softmax(dim=0).cpu()
            order = probabilities.argsort(descending=True).tolist()
            ranking = tuple((spec.classes[index], float(probabilities[index])) for index in order)
            yield ExplainedImage(path, ranking, explained)

    return results()


def read_image(path: Path) -> Tensor:
    """(1, 3, H, W) uint8 RGB."""
    return torch.tensor(decode_image(path)).permute(2, 0, 1)[None].contiguous()
