"""Sharpness-aware steps against the definition, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, RECIPE, Tiny, run, small, small_resnet
from torch.nn import functional as F

from whycam.training import Recipe
from whycam.training.loop import Loop
from whycam.training.sharpness import ascended


@pytest.fixture
def sloped():
    """A network in float64, images, labels, and the gradients of its loss."""
    torch.manual_seed(0)
    model = Tiny(10).double()
    source = small(0, 64)
    x, labels = PREPROCESS(source.read(range(64))).double(), torch.as_tensor(source.labels, dtype=torch.int64)
    F.cross_entropy(model(x), labels).backward()
    return model, x, labels


def distance(model, here):
    """√Σ (‖change‖ / ‖w‖)² over the tensors of two and more axes."""
    weights = [(p.detach(), here[name]) for name, p in model.named_parameters() if p.ndim > 1]
    return float(sum(((now - then).norm() / then.norm()) ** 2 for now, then in weights)) ** 0.5


def test_the_place_is_the_papers(sloped):
    model, *_ = sloped
    slow = {n: (p.detach().numpy().copy(), p.grad.numpy()) for n, p in model.named_parameters() if p.ndim > 1}
    total = np.sqrt(sum((np.sqrt((w**2).sum()) * np.sqrt((g**2).sum())) ** 2 for w, g in slow.values()))
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    with ascended(model, 0.1):
        for name, p in model.named_parameters():
            expected = here[name].numpy()
            if name in slow:
                w, g = slow[name]
                expected = w + 0.1 * (w**2).sum() * g / total
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)
        assert distance(model, here) == pytest.approx(0.1)


def test_no_place_so_near_is_worse(sloped):
    """To first order: the loss rises there by more than at any of many random places as far away."""
    model, x, labels = sloped
    model.eval()
    model.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    radius = 1e-3

    @torch.no_grad()
    def loss():
        return float(F.cross_entropy(model(x), labels))

    flat = loss()
    with ascended(model, radius):
        worst = loss() - flat
    rises = []
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p += p.norm() * F.normalize(torch.randn(p.shape, generator=draw, dtype=p.dtype).flatten(), dim=0
                                                ).view_as(p) * radius / 3**0.5  # fmt: skip
            assert distance(model, here) == pytest.approx(radius)
            rises.append(loss() - flat)
            for name, p in model.named_parameters():
                p.copy_(here[name])
    assert worst > 2 * max(rises) > 0


def test_all_is_back_afterwards(sloped):
    """Weights and running statistics, bit for bit, also after an error; the gradients are those from there."""
    model, x, labels = sloped
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]

    def fail():
        with ascended(model, 0.1):
            model.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not torch.equal(p.grad, old) for p, old in zip(model.parameters(), gradients, strict=True))


def test_without_a_slope_nothing_moves():
    model = Tiny(10)
    with ascended(model, 0.1):  # no gradients at all
        pass
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ascended(model, 0.1):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_from_when_on(tmp_path, monkeypatch):
    """Two passes a step from that epoch on, one before; the network that comes of it is another."""
    passes = []
    plain = Loop.differentiate

    def counted(self, *given):
        passes.append(self.position.epoch)
        return plain(self, *given)

    monkeypatch.setattr(Loop, "differentiate", counted)
    recipe = RECIPE.override({"sam_radius": 0.05, "sam_from": 0.5})
    sharp = run(tmp_path / "sharp", recipe=recipe, network=small_resnet)
    assert [passes.count(epoch) for epoch in range(4)] == [8, 8, 16, 16]
    flat = run(tmp_path / "flat", recipe=RECIPE, network=small_resnet)
    assert sharp.history[1].train_loss == flat.history[1].train_loss
    assert sharp.history[3].train_loss != flat.history[3].train_loss
    assert not Recipe(sam_from=0.0).sharpness_aware(0)
