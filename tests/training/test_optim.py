"""Schedule, optimizer, averaging and loss, each against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, RECIPE, Tiny, run, small
from torch import nn

from whycam.training import RECIPES, Recipe
from whycam.training.augment import plan_epoch
from whycam.training.averaging import Averager
from whycam.training.device_dataset import DeviceDataset
from whycam.training.history import StepProgress
from whycam.training.optim import (
    decay_groups,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_lr,
)
from whycam.training.schedule import lr_and_momentum
from whycam.training.state import load_state
from whycam.training.train import initial_model


def test_the_study_schedule_is_torchs_one_cycle():
    """Exactly: max 2.1e-3, pct_start 5/20, both factors 100, linear, momentum cycled."""
    recipe, total = RECIPES["study"], 200
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.1e-3, total_steps=total, pct_start=5 / 20, div_factor=100, final_div_factor=100,
        anneal_strategy="linear",
    )  # fmt: skip
    for step in range(total):
        lr, momentum = lr_and_momentum(recipe, step, total)
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step + 1 < total:
            theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
def test_learning_rate_rises_to_its_peak_and_falls(warmup, total):
    recipe = Recipe(lr=0.5, warmup=warmup, lr_start=0.1, lr_end=0.01)
    lrs = [lr_and_momentum(recipe, step, total)[0] for step in range(total)]
    peak = lrs.index(max(lrs))
    assert lrs[: peak + 1] == sorted(lrs[: peak + 1])
    assert lrs[peak:] == sorted(lrs[peak:], reverse=True)
    assert all(0.005 <= lr <= 0.5 for lr in lrs)
    if total >= 10:
        assert max(lrs) == pytest.approx(0.5, rel=0.2)
        assert lrs[0] == pytest.approx(0.5 if warmup == 0 else 0.05)
        assert lrs[-1] == pytest.approx(0.5 if warmup == 1 else 0.005)
    assert lr_and_momentum(recipe, 0, total)[1] == recipe.momentum


def test_decay_groups():
    model = Tiny(10)
    decayed, others = decay_groups(model)
    assert [id(p) for p in decayed] == [id(m.weight) for m in (model.conv1, model.conv2, model.linear)]
    assert {id(p) for p in decayed + others} == {id(p) for p in model.parameters()}
    model.conv1.weight.requires_grad_(False)
    assert len(decay_groups(model)[0]) == 2


def loss_of(model):
    """A loss with a known gradient: half the sum of squares of (weight − 1)."""
    return sum(((p - 1) ** 2).sum() / 2 for p in model.parameters())


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_equal_the_textbook(kind, decoupled, decay_all):
    recipe = Recipe(optimizer=kind, decoupled=decoupled, decay_all=decay_all, weight_decay=0.05, momentum=0.8)
    model = Tiny(10).double()
    optimizer = make_optimizer(model, recipe)
    slow = [
        {"p": p.detach().numpy().copy(), "m": 0.0, "v": 0.0, "decay": 0.05 if decay_all or p.ndim > 1 else 0.0}
        for p in model.parameters()
    ]
    rates = [(0.1, 0.8), (0.2, 0.85), (0.05, 0.9)]
    betas = []
    for t, (lr, momentum) in enumerate(rates, start=1):
        set_lr(optimizer, lr, momentum)
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        betas.append(momentum)
        for one in slow:
            g = one["p"] - 1
            if decoupled:
                one["p"] = one["p"] * (1 - lr * one["decay"] / ((1 - momentum) if kind == "sgd" else 1))
            else:
                g = g + one["decay"] * one["p"]
            if kind == "sgd":
                one["m"] = g if t == 1 else momentum * one["m"] + g
                one["p"] = one["p"] - lr * (g + momentum * one["m"])
            else:
                one["m"] = momentum * one["m"] + (1 - momentum) * g
                one["v"] = 0.999 * one["v"] + 0.001 * g * g
                unbiased = one["m"] / (1 - momentum**t)
                one["p"] = one["p"] - lr * unbiased / (np.sqrt(one["v"] / (1 - 0.999**t)) + 1e-8)
    for p, one in zip(model.parameters(), slow, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), one["p"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizer_step_ignores_memory_formats(kind):
    """A gradient may have another memory format than its parameter, for example if a hook made it."""
    models = [Tiny(10).to(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        optimizer = make_optimizer(model, Recipe(optimizer=kind))
        for _ in range(3):
            set_lr(optimizer, 0.01, 0.9)
            for p in model.parameters():
                # Different values for all elements, the same for both models.
                p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view(p.shape)
            optimizer.step()
    assert not models[1].conv2.weight.is_contiguous()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["sgd", "adam", "muon"])
def test_optimizer_continues_from_saved_tensors(kind):
    recipe = Recipe(optimizer=kind)
    first = Tiny(10)
    second = Tiny(10)

    def step(model, optimizer):
        set_lr(optimizer, 0.01, 0.9)
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    one = make_optimizer(first, recipe)
    step(first, one)
    second.load_state_dict(first.state_dict())
    two = make_optimizer(second, recipe)
    load_optimizer_tensors(two, {name: value.clone() for name, value in optimizer_tensors(one).items()})
    step(first, one)
    step(second, two)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("averaging", ["ema", "lookahead"])
def test_the_average_equals_the_textbook(averaging):
    """Fifty updates every third step and one after the last, over weights and BatchNorm statistics."""
    recipe = Recipe(averaging=averaging, averaging_every=3, averaging_decay=0.9)
    model = Tiny(4).double()
    averager = Averager(model, recipe)
    slow = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    total, updates = 152, 0
    for step in range(1, total + 1):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value += torch.randn(value.shape, generator=draw, dtype=value.dtype)
                else:
                    value += 1
        now = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        averager.update(model, step, total)
        if step % 3 == 0 or step == total:
            updates += 1
            decay = min(0.9, (1 + updates) / (10 + updates)) if averaging == "ema" else 0.9 * (step / total) ** 3
            for name, value in now.items():
                floats = value.dtype == np.float64
                slow[name] = decay * slow[name] + (1 - decay) * value if floats else value
        for name, value in model.state_dict().items():
            returned = averaging == "lookahead" and (step % 3 == 0 or step == total)
            np.testing.assert_allclose(value.numpy(), slow[name] if returned else now[name], rtol=1e-12, atol=1e-12)
    assert updates == 51
    for name, value in averager.average.items():
        np.testing.assert_allclose(value.numpy(), slow[name], rtol=1e-10, atol=1e-10)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with averager.applied_to(model):
        assert all(torch.equal(v, averager.average[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(v, own[n]) for n, v in model.state_dict().items())


def test_loop_step_equals_the_textbook(tmp_path):
    """Loss with label smoothing, gradient, Nesterov step and decay of a real batch, in float64."""
    recipe = RECIPE.override(
        {"epochs": 1, "label_smoothing": 0.2, "batch_size": 64, "averaging": "none", "warmup": 0.5, "lr_start": 1.0}
    )
    seen = []
    run(tmp_path / "run", recipe=recipe, images=64, on_progress=seen.append)
    data = DeviceDataset(small(0, 64), PREPROCESS, torch.device("cpu"), recipe.pad, recipe.pad_mode)
    x, labels = data.augmented_batch(plan_epoch(recipe, 64, 16, 0, 0), recipe, 12)
    model = initial_model(recipe, 10, 0, torch.device("cpu"), Tiny).double().train()
    log_p = model(x.double()).log_softmax(1)
    loss = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        for k in range(10):
            loss = loss - (0.8 * (k == label) + 0.02) * log_p[i, k]
    loss = loss / 64
    progress = next(event for event in seen if isinstance(event, StepProgress))
    assert progress.batch_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert progress.accuracy == pytest.approx(float((log_p.argmax(1) == labels).double().mean()))
    loss.backward()
    lr, momentum = lr_and_momentum(recipe, 0, 1)
    weights = load_state(tmp_path / "run" / "state.pt").tensors["model"]
    for name, p in model.named_parameters():
        decayed = p.detach() * (1 - lr * recipe.weight_decay / (1 - momentum)) if p.ndim > 1 else p.detach()
        expected = decayed - lr * (1 + momentum) * p.grad
        torch.testing.assert_close(weights[name].double(), expected, rtol=1e-4, atol=1e-6)
