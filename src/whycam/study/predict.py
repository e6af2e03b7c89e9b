"""Run a network over a data set, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from whycam.data.preprocess import Preprocess
from whycam.data.source import ImageSource
from whycam.errors import WhycamError, check_batch_size
from whycam.metrics.classification import Classification, score_classification
from whycam.models.checkpoint import ModelSpec, check_classes
from whycam.nn_utils import in_eval_mode
from whycam.progress import Progress, quiet


@torch.inference_mode()
def logits_of(
    model: nn.Module, preprocess: Preprocess, source: ImageSource, positions: range, batch_size: int
) -> Iterator[tuple[range, Tensor]]:
    """(positions, (B, K) float32 logits on the CPU), batch after batch.

    Raises:
        WhycamError: the network's output is NaN or infinite.
    """
    device = next(model.parameters()).device
    with in_eval_mode(model):
        for start in range(positions.start, positions.stop, batch_size):
            batch = range(start, min(start + batch_size, positions.stop))
            logits = model(preprocess(source.read(batch).to(device))).float().cpu()
            if not bool(logits.isfinite().all()):
                worst = batch[int((~logits.isfinite()).any(dim=1).int().argmax())]
                raise WhycamError(f"the network's output for {source.ids[worst]} is NaN or infinite")
            yield batch, logits


def evaluate(
    model: nn.Module,
    spec: ModelSpec,
    source: ImageSource,
    *,
    batch_size: int = 128,
    progress: Progress = quiet,
) -> Classification:
    """Score a network on a labeled data set.

    Args:
        model: in any mode; it runs in eval mode and is left as it was.
        spec: its classes and preprocessing.
        source: the data.
        batch_size: images at a time.
        progress: told ("predict", images done, images in all).

    Raises:
        WhycamError: there is no image, or the classes differ from the network's.
    """
    check_batch_size(batch_size)
    check_classes(spec, source)
    if not len(source):
        raise WhycamError(f"{source.name}: there is no image to evaluate")
    outputs = []
    for batch, logits in logits_of(model, spec.preprocess, source, range(len(source)), batch_size):
        outputs.append(logits)
        progress("predict", batch.stop, len(source))
    return score_classification(torch.cat(outputs), torch.from_numpy(np.asarray(source.labels)))
