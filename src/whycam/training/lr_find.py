"""The learning-rate range test (Smith, 2017, arXiv:1506.01186): raise the learning rate until the loss explodes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.data.preprocess import CIFAR10, Preprocess
from whycam.data.source import ImageSource
from whycam.device import pick_device
from whycam.errors import WhycamError, within_hardware
from whycam.nn_utils import in_eval_mode
from whycam.training.augment import plan_epoch
from whycam.training.checks import USE_LESS_MEMORY, check_crops, explain_batchnorm_errors
from whycam.training.device_dataset import DeviceDataset
from whycam.training.optim import make_optimizer, set_lr
from whycam.training.recipe import Recipe
from whycam.training.train import NetworkFactory, initial_model


@dataclass(frozen=True)
class LrFindResult:
    """The losses of a range test.

    Attributes:
        lrs: learning rate of each iteration, rising exponentially.
        losses: the loss of each iteration.
        smoothed: exponential moving average of the losses, corrected for its start.
        suggestion: the learning rate at which the smoothed loss falls most steeply on a logarithmic axis: try it as
            the peak.
        exploded: whether the test ended early because the loss had grown too much.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    exploded: bool


def lr_range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    start: float = 1e-5,
    end: float = 10.0,
    iterations: int = 200,
    smoothing: float = 0.9,
    explosion: float = 4.0,
    label_smoothing: float = 0.0,
    on_step: Callable[[int], None] | None = None,
) -> LrFindResult:
    """Train on one batch per learning rate, from ``start`` to ``end``; then restore everything.

    Model, optimizer, modes and gradients are bit-identical to before, also after an exception.

    Args:
        model: on the device of the batches.
        optimizer: over the model's parameters; its learning rates are replaced for the test.
        batches: (B, C, H, W) inputs and (B,) labels; at least ``iterations`` of them.
        start: first learning rate.
        end: last learning rate.
        iterations: number of steps; the learning rate grows by the same factor each.
        smoothing: share of the old average in the smoothed loss.
        explosion: stop when the smoothed loss is this many times the lowest so far.
        label_smoothing: as in training.
        on_step: called with the number of steps done.

    Raises:
        WhycamError: the range or the number of iterations is invalid, there are too few batches, or the loss is
            not finite in the first three iterations.
    """
    if not 0 < start < end or iterations < 10:
        raise WhycamError(
            f"the range test goes from {start:g} to {end:g} in {iterations} iterations; "
            "it needs 0 < start < end and at least 10 iterations"
        )
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, exploded = 0.0, False
    with restored(model, optimizer):
        model.train()
        source = iter(batches)
        for iteration in range(iterations):
            batch = next(source, None)
            if batch is None:
                raise WhycamError(f"the range test needs {iterations} batches, but there are only {iteration}")
            lr = start * (end / start) ** (iteration / (iterations - 1))
            set_lr(optimizer, lr)
            loss = F.cross_entropy(model(batch[0]).float(), batch[1], label_smoothing=label_smoothing)
            value = float(loss.detach())
            if not math.isfinite(value):
                exploded = True
                break
            average = smoothing * average + (1 - smoothing) * value
            lrs.append(lr)
            losses.append(value)
            smoothed.append(average / (1 - smoothing ** (iteration + 1)))
            if iteration >= 10 and smoothed[-1] > explosion * min(smoothed):
                exploded = True
                break
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            if on_step is not None:
                on_step(iteration + 1)
    if len(lrs) < 3:
        raise WhycamError(f"the range test's loss is not finite at a learning rate of {start:g}; start lower")
    # At the start the average is over few losses, so its gradient is noise: skip that part.
    settled = min(round(1 / (1 - smoothing)), len(lrs) // 4)
    gradients = np.gradient(np.array(smoothed), np.log(lrs))
    steepest = settled + int(np.argmin(gradients[settled:]))
    return LrFindResult(tuple(lrs), tuple(losses), tuple(smoothed), lrs[steepest], exploded)


def lr_find(
    recipe: Recipe,
    source: ImageSource,
    *,
    seed: int = 0,
    device: str = "auto",
    start: float = 1e-5,
    end: float = 10.0,
    iterations: int = 200,
    preprocess: Preprocess = CIFAR10,
    network: NetworkFactory | None = None,
    on_step: Callable[[int], None] | None = None,
) -> LrFindResult:
    """The range test for a recipe's network, optimizer, batches and augmentation, on a new network, in fp32.

    The steps are never sharpness-aware, even if the recipe's are.

    Raises:
        WhycamError: as for ``lr_range_test``, or the data do not fit.
    """
    place = pick_device(device)
    data = DeviceDataset(source, preprocess, place, recipe.pad, recipe.pad_mode)
    check_crops(recipe, data)
    model = initial_model(recipe, len(source.classes), seed, place, network)
    with explain_batchnorm_errors(), within_hardware(USE_LESS_MEMORY):
        return lr_range_test(
            model,
            make_optimizer(model, recipe),
            _batches(recipe, data, seed),
            start=start,
            end=end,
            iterations=iterations,
            label_smoothing=recipe.label_smoothing,
            on_step=on_step,
        )


def _batches(recipe: Recipe, data: DeviceDataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The recipe's training batches, epoch after epoch without end."""
    epoch = 0
    while True:
        plan = plan_epoch(recipe, len(data), data.side, seed, epoch % recipe.epochs).to(data.labels.device)
        for step in range(recipe.steps_per_epoch(len(data))):
            part = plan.slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            yield data.augmented_batch(part, recipe, recipe.crop_size(epoch % recipe.epochs, data.side))
        epoch += 1


@contextlib.contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """After the block, restore weights, buffers, modes, gradients and the optimizer's state."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    gradients = [(p, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    try:
        with in_eval_mode(model):
            yield
    finally:
        model.load_state_dict(weights)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        # load_state_dict does not remove a state that was created in the block.
        optimizer.state.clear()
        optimizer.load_state_dict(state)
