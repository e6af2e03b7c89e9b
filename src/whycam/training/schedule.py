"""The learning rate and momentum of each step: a linear rise to the peak, then a linear fall."""

from __future__ import annotations

from whycam.training.recipe import Recipe


def lr_and_momentum(recipe: Recipe, step: int, total: int) -> tuple[float, float]:
    """The learning rate and momentum for ``step`` (from 0) of ``total``.

    This is one-cycle training (Smith and Topin, 2018, arXiv:1708.07120) with linear phases: from ``lr_start`` to the
    peak during the warm-up, then to ``lr_end``; a cycled momentum moves in the opposite direction. The first and the
    last step have exactly the end points' values, and the peak is at step ``warmup · total − 1``, as in torch's
    ``OneCycleLR``. The result depends only on the step, so the schedule has no state to save.
    """
    peak, last = recipe.warmup * total - 1, total - 1
    if step <= peak:
        rise = step / peak if peak > 0 else 1.0
        fraction = recipe.lr_start + (1 - recipe.lr_start) * rise
    else:
        start = max(peak, 0.0)
        fall = (step - start) / (last - start) if last > start else 1.0
        rise = 1 - fall
        fraction = 1 + (recipe.lr_end - 1) * fall
    momentum = recipe.momentum
    if recipe.momentum_range is not None:
        low, high = recipe.momentum_range
        momentum = high + (low - high) * rise
    return recipe.lr * fraction, momentum
