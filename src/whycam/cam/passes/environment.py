"""The environment in which every pass runs: eval mode, no wrappers, no inference mode. Entered once per explanation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from whycam.errors import WhycamError
from whycam.nn_utils import instrumented


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Enter eval mode, unwrap compiled and parallel parts, and leave the caller's ``inference_mode``.

    Autograd accepts no tensor made under ``inference_mode``, so the block runs outside that mode. Afterwards the model
    and the mode are as before.

    Args:
        model: unwrapped.

    Raises:
        WhycamError: a lazy module has not been initialized by a first batch, or the model or a target holds a tensor
            that was made under ``inference_mode`` and that whycam cannot replace.
    """
    with torch.inference_mode(False), instrumented(model):
        try:
            yield
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            raise WhycamError(
                "the model or a target holds a tensor that was made under torch.inference_mode and is no parameter, "
                "buffer or field, so autograd does not accept it: make it outside of inference_mode, or clone it there"
            ) from error


def assert_explaining(model: nn.Module) -> None:
    """Assert that the caller runs inside `explaining`; if not, that is a bug in whycam, not the user's error."""
    assert not torch.is_inference_mode_enabled(), "passes run inside explaining()"
    assert not model.training, "passes run inside explaining()"
