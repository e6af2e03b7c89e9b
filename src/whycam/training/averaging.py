"""Weight averaging: an exponential moving average beside the weights, or lookahead, which resets them to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from whycam.training.recipe import Recipe


class Averager:
    """The running average of a network's parameters and BatchNorm statistics.

    Attributes:
        average: tensors by their name in the network's ``state_dict``; counters are copied, not averaged.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, total: int) -> None:
        """Update the average after ``step`` (from 1), if it is a multiple of ``averaging_every`` or the last one.

        average ← d · average + (1 − d) · weights. For "ema", d = min(averaging_decay, (1 + u) / (10 + u)) at the u-th
        update, so that the first weights are soon forgotten. For "lookahead", d = averaging_decay · (step / total)³,
        and the network continues from the average.
        """
        every = self.recipe.averaging_every
        if step % every and step != total:
            return
        updates = -(-step // every)
        decay = min(self.recipe.averaging_decay, (1 + updates) / (10 + updates))
        if self.recipe.averaging == "lookahead":
            decay = self.recipe.averaging_decay * (step / total) ** 3
        current = model.state_dict()
        floats = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floats], [current[n] for n in floats], 1 - decay)
        for name, value in current.items():
            if not value.is_floating_point():
                self.average[name].copy_(value)
            elif self.recipe.averaging == "lookahead":
                value.copy_(self.average[name])

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, value in tensors.items():
            self.average[name].copy_(value)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Load the average into the network for the length of the block; afterwards restore its own weights exactly."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)
