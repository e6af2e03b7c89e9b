"""Networks, their checkpoints, and the layer table."""

from whycam._lazy import lazy_names
from whycam.models.checkpoint import ModelSpec, save_checkpoint
from whycam.models.loading import load
from whycam.models.resnet import ARCHITECTURES, resnet18, resnet34
from whycam.models.summary import Summary, summarize

__getattr__ = lazy_names(
    __name__,
    moved={
        "summarise": "whycam.models:summarize",
    },
)

__all__ = ["ARCHITECTURES", "ModelSpec", "Summary", "load", "resnet18", "resnet34", "save_checkpoint", "summarize"]
