"""The environment in which every pass runs: eval mode, no wrappers, no inference mode. Entered once per explanation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from whycam.errors import WhycamError
from whycam.nn_utils import instrumented

_ENTERED: ContextVar[frozenset[int]] = ContextVar("entered", default=frozenset())
"""The ids of the models that this thread is inside of."""


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Enter eval mode, unwrap compiled and parallel parts, and leave the caller's ``inference_mode``.

    Autograd accepts no tensor made under ``inference_mode``, so the block runs outside that mode. Afterwards the model
    and the mode are as before.

    `whycam.explain` enters this once, before its first pass. Passes enter it again, which does nothing while it is in
    force. So a pass that a method runs after the explanation is made has the same environment.

    Args:
        model: unwrapped.

    Raises:
        WhycamError: a lazy module has not been initialized by a first batch, or the model or a target holds a tensor
            that was made under ``inference_mode`` and that whycam cannot replace.
    """
    if _in_force(model):
        yield
        return
    entered = _ENTERED.set(_ENTERED.get() | {id(model)})
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
        finally:
            _ENTERED.reset(entered)


def _in_force(model: nn.Module) -> bool:
    """Whether the block is entered and still holds. A ``forward`` that calls ``train()`` ends it, for example."""
    entered = id(model) in _ENTERED.get() and not torch.is_inference_mode_enabled()
    return entered and not any(module.training for module in model.modules())
