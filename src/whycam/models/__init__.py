"""Networks, their checkpoints, and the table that summarises them."""

from whycam.models.checkpoint import ModelSpec, save_checkpoint
from whycam.models.loading import load
from whycam.models.resnet import ARCHITECTURES, resnet18, resnet34
from whycam.models.summary import Summary, summarise

__all__ = ["ARCHITECTURES", "ModelSpec", "Summary", "load", "resnet18", "resnet34", "save_checkpoint", "summarise"]
