"""The part that all explaining objects share: they are callable and context managers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from whycam.compat.pytorch_grad_cam._arrays import Array


class Explainer:
    """Calls `forward`; as a context manager, releases the stored activations at the end and hides no exception."""

    forward: Callable[..., Array]

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """See `forward`."""
        return self.forward(*args, **kwargs)

    def _holders(self) -> Sequence[Any]:
        """The objects whose ``activations_and_grads`` is released."""
        return [self]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for holder in self._holders():
            if (kept := getattr(holder, "activations_and_grads", None)) is not None:
                kept.release()
