"""Muon against its definition by singular values, and the parameters it applies to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import Tiny, run, small_resnet
from torch import nn

from whycam.models.resnet import BasicBlock, resnet18
from whycam.training import Recipe
from whycam.training.muon import NEWTON_SCHULZ, normalize_filters, orthogonalize
from whycam.training.optim import make_optimizer, parameter_groups, set_lr
from whycam.training.train import initial_model

SHAPES = [(8, 3, 3, 3), (8, 3, 3, 3), (16, 8, 1, 1), (6, 20), (1, 5, 3, 3), (8, 5), (5, 8)]


def draw(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_orthogonalize(matrix):
    """The polynomial applied to the singular values, in NumPy."""
    rows, columns = matrix.shape
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v * max(1, rows / columns) ** 0.5


@pytest.mark.parametrize("pad", [False, True])
def test_newton_schulz_applies_its_polynomial_to_singular_values(pad):
    given = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    for matrix, answer in zip(given, orthogonalize(given, pad=pad), strict=True):
        assert answer.shape == matrix.shape
        expected = slow_orthogonalize(matrix.flatten(1).numpy())
        np.testing.assert_allclose(answer.flatten(1).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_orthogonalize_keeps_dtypes():
    kept = [torch.float32, torch.float64, torch.float32]
    assert [m.dtype for m in orthogonalize([torch.ones(4, 6, dtype=kind) for kind in kept], pad=True)] == kept


def test_singular_values_end_near_one():
    """Singular values from 1 to 1/30 end within the iteration's known range."""
    u, _, v = torch.linalg.svd(draw((12, 40)), full_matrices=False)
    [answer] = orthogonalize([u @ torch.diag(torch.logspace(0, -1.5, 12, dtype=torch.float64)) @ v])
    values = torch.linalg.svdvals(answer)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonalize_ignores_memory_formats():
    given = draw((8, 6, 3, 3))
    [one], [two] = orthogonalize([given]), orthogonalize([given.to(memory_format=torch.channels_last)])
    torch.testing.assert_close(one, two)


def test_zero_matrices_stay_zero():
    [answer] = orthogonalize([torch.zeros(4, 3, 3, 3)])
    filters = [torch.zeros(4, 3, 3, 3), torch.zeros(512, 9), torch.ones(4, 9)]
    normalize_filters(filters)
    assert not answer.any()
    assert not filters[0].any()
    assert not filters[1].any()
    assert float(filters[2].norm()) == pytest.approx(2)


def test_steps_equal_the_textbook():
    """Filters: norm, then an orthogonal Nesterov step; all others: decoupled SGD, each group at its own rate."""
    recipe = Recipe(optimizer="muon", weight_decay=0.05, momentum=0.8, other_rate=0.5, bias_rate=3.0)
    model = Tiny(10).double()
    optimizer = make_optimizer(model, recipe)
    slow = {name: {"p": p.detach().numpy().copy(), "m": 0.0} for name, p in model.named_parameters()}
    for lr, momentum in [(0.1, 0.8), (0.2, 0.85), (0.05, 0.9)]:
        set_lr(optimizer, lr, momentum)
        optimizer.zero_grad()
        sum(((p - torch.linspace(0, 1, p.numel()).view_as(p)) ** 2).sum() / 2 for p in model.parameters()).backward()
        optimizer.step()
        for name, one in slow.items():
            p = one["p"]
            g = p - np.linspace(0, 1, p.size, dtype=np.float32).astype(np.float64).reshape(p.shape)
            one["m"] = momentum * one["m"] + g
            step = g + momentum * one["m"]
            if p.ndim == 4:
                p = p * (len(p) ** 0.5 / np.sqrt((p**2).sum()))
                one["p"] = p - lr * slow_orthogonalize(step.reshape(len(p), -1)).reshape(p.shape)
            else:
                p = p * (1 - 0.5 * lr * (0.05 if p.ndim == 2 else 0.0) / (1 - momentum))
                one["p"] = p - lr * 0.5 * (3.0 if name.endswith("bias") else 1.0) * step
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), slow[name]["p"], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["sgd", "adam", "muon"])
def test_every_parameter_is_in_one_group(kind):
    model = resnet18()
    groups = parameter_groups(model, Recipe(optimizer=kind, bias_rate=4.0))
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    biases = [p for group in groups if group["scale"] == 4 for p in group["params"]]
    assert len(biases) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) + 1
    orthogonal = [p for group in groups if group.get("orthogonal") for p in group["params"]]
    assert len(orthogonal) == (sum(isinstance(m, nn.Conv2d) for m in model.modules()) if kind == "muon" else 0)


class Tokens(nn.Module):
    """Parameters with three and four axes, of which only one is a convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.raised = nn.ConvTranspose2d(8, 8, 2)
        self.places = nn.Parameter(torch.zeros(1, 16, 8))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-5))


def test_only_convolution_filters_are_orthogonalized():
    """The norm of other parameters with many axes is not changed."""
    model = Tokens()
    optimizer = make_optimizer(model, Recipe(optimizer="muon"))
    orthogonal = [p for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]]
    assert [id(p) for p in orthogonal] == [id(model.patches.weight)]
    sum(p.sum() for p in model.parameters()).backward()
    set_lr(optimizer, 1e-9, 0.9)
    optimizer.step()
    assert float(model.scale.detach().abs().max()) == pytest.approx(1e-5, rel=1e-3)
    assert float(model.places.detach().abs().max()) < 1e-6
    assert float(model.patches.weight.detach().norm()) == pytest.approx(8**0.5)


def test_a_network_learns_with_muon(tmp_path):
    recipe = Recipe(
        optimizer="muon", epochs=30, batch_size=32, lr=0.05, momentum=0.8, label_smoothing=0, flip="none", pad=0,
        crops=((0.0, 12),), averaging="none", precision="fp32",
    )  # fmt: skip
    result = run(tmp_path / "run", recipe=recipe, images=128, network=small_resnet)
    assert result.finished
    assert result.history[-1].train_accuracy > 0.9 > 0.5 > result.history[0].train_accuracy


def test_zero_gain_makes_blocks_start_as_shortcuts():
    model = initial_model(Recipe(zero_gain=True), 10, 0, torch.device("cpu")).eval()
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert len(blocks) == 8
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(blocks[0](x), x.relu())
    assert all(float(block.bn1.weight.detach().min()) == 1 for block in blocks)
