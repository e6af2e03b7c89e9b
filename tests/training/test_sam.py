"""Sharpness-aware steps against their definition, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, RECIPE, Tiny, run, small, small_resnet
from torch.nn import functional as F

from whycam.training import Recipe
from whycam.training.augment import plan_epoch
from whycam.training.device_dataset import DeviceDataset
from whycam.training.history import StepProgress
from whycam.training.loop import Loop
from whycam.training.sam import perturbed_weights
from whycam.training.state import load_state
from whycam.training.train import initial_model


@pytest.fixture
def network_with_gradients():
    """A network in float64, images, labels, and the gradients of its loss."""
    torch.manual_seed(0)
    model = Tiny(10).double()
    source = small(0, 64)
    x, labels = PREPROCESS(source.read(range(64))).double(), torch.as_tensor(source.labels, dtype=torch.int64)
    F.cross_entropy(model(x), labels).backward()
    return model, x, labels


@pytest.fixture
def passes(monkeypatch):
    """The epoch of every forward and backward pass of a training."""
    found = []
    plain = Loop.compute_gradients

    def counted(self, *given):
        found.append(self.position.epoch)
        return plain(self, *given)

    monkeypatch.setattr(Loop, "compute_gradients", counted)
    return found


def distance(model, here):
    """√Σ (‖change‖ / ‖w‖)² over the tensors with two or more axes."""
    weights = [(p.detach(), here[name]) for name, p in model.named_parameters() if p.ndim > 1]
    return float(sum(((now - then).norm() / then.norm()) ** 2 for now, then in weights)) ** 0.5


def test_perturbation_equals_the_papers_formula(network_with_gradients):
    model, *_ = network_with_gradients
    slow = {n: (p.detach().numpy().copy(), p.grad.numpy()) for n, p in model.named_parameters() if p.ndim > 1}
    total = np.sqrt(sum((np.sqrt((w**2).sum()) * np.sqrt((g**2).sum())) ** 2 for w, g in slow.values()))
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    with perturbed_weights(model, 0.1):
        for name, p in model.named_parameters():
            expected = here[name].numpy()
            if name in slow:
                w, g = slow[name]
                expected = w + 0.1 * (w**2).sum() * g / total
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)
        assert distance(model, here) == pytest.approx(0.1)


def test_perturbation_raises_the_loss_more_than_random_ones(network_with_gradients):
    """The loss rises more than with any of 50 random perturbations of the same size."""
    model, x, labels = network_with_gradients
    model.eval()
    model.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    radius = 1e-3

    @torch.no_grad()
    def loss():
        return float(F.cross_entropy(model(x), labels))

    flat = loss()
    with perturbed_weights(model, radius):
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


def test_weights_and_buffers_are_restored(network_with_gradients):
    """Exactly, also after an error; the gradients are those at the perturbed weights."""
    model, x, labels = network_with_gradients
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]

    def fail():
        with perturbed_weights(model, 0.1):
            model.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not torch.equal(p.grad, old) for p, old in zip(model.parameters(), gradients, strict=True))


def test_zero_gradients_move_no_weights():
    model = Tiny(10)
    with perturbed_weights(model, 0.1):  # no gradients at all
        pass
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with perturbed_weights(model, 0.1):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sharpness_aware_loop_step_equals_the_textbook(tmp_path):
    """Loss, right answers and running statistics of the first pass, the gradient of the second, of the same images.

    Against torch's own SGD around two passes written out, in float64; with a second step, that has a momentum.
    """
    recipe = RECIPE.override(
        {"epochs": 2, "batch_size": 64, "crops": ((0.0, 12),), "averaging": "none", "sam_radius": 0.1, "lr": 0.02,
         "weight_decay": 0.0, "label_smoothing": 0.0, "warmup": 0.5, "lr_start": 1.0, "lr_end": 1.0}
    )  # fmt: skip
    seen = []
    run(tmp_path / "run", recipe=recipe, images=64, on_progress=seen.append)
    data = DeviceDataset(small(0, 64), PREPROCESS, torch.device("cpu"), recipe.pad, recipe.pad_mode)
    model = initial_model(recipe, 10, 0, torch.device("cpu"), Tiny).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    steps = [event for event in seen if isinstance(event, StepProgress)]
    for epoch in range(2):
        x, labels = data.augmented_batch(plan_epoch(recipe, 64, 16, 0, epoch), recipe, 12)
        optimizer.zero_grad()
        logits = model(x.double())
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        assert steps[epoch].batch_loss == pytest.approx(float(loss.detach()), rel=1e-4)
        assert steps[epoch].accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        here = {name: value.clone() for name, value in model.state_dict().items()}
        slopes = {name: p.norm() * p.grad.norm() for name, p in weights.items()}
        total = sum(slope**2 for slope in slopes.values()).sqrt()
        with torch.no_grad():
            for p in weights.values():
                p += 0.1 * p.norm() ** 2 * p.grad / total
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), labels).backward()
        model.load_state_dict(here)
        optimizer.step()
    for name, value in load_state(tmp_path / "run" / "state.pt").tensors["model"].items():
        torch.testing.assert_close(value.double(), model.state_dict()[name].double(), rtol=1e-4, atol=1e-6)


def test_time_left_counts_the_second_pass(tmp_path, monkeypatch, passes):
    """With equal steps, and a clock that counts forward passes."""
    monkeypatch.setattr("whycam.training.loop.time.monotonic", lambda: float(len(passes)))
    seen = []
    recipe = RECIPE.override({"crops": ((0.0, 12),), "sam_radius": 0.05, "sam_from": 0.5})
    run(tmp_path / "run", recipe=recipe, on_progress=seen.append)
    steps = [event for event in seen if isinstance(event, StepProgress)]
    # Four epochs of eight steps, of which the last sixteen steps have two passes.
    total = 16 + 2 * 16
    done = [step + 1 if step < 16 else 2 * (step + 1) - 16 for step in range(32)]
    assert [event.seconds_left for event in steps] == pytest.approx([total - n for n in done])


def test_sam_from(tmp_path, passes):
    """Two passes per step from that epoch on and one before; the weights differ from then on."""
    recipe = RECIPE.override({"sam_radius": 0.05, "sam_from": 0.5})
    sharp = run(tmp_path / "sharp", recipe=recipe, network=small_resnet)
    assert [passes.count(epoch) for epoch in range(4)] == [8, 8, 16, 16]
    flat = run(tmp_path / "flat", recipe=RECIPE, network=small_resnet)
    assert sharp.history[1].train_loss == flat.history[1].train_loss
    assert sharp.history[3].train_loss != flat.history[3].train_loss
    assert not Recipe(sam_from=0.0).sharpness_aware(0)


@pytest.mark.parametrize("epochs", range(1, 101))
def test_sam_from_and_crops_count_epochs_alike(epochs):
    for first in range(1, epochs):
        recipe = Recipe(epochs=epochs, sam_radius=0.1, sam_from=first / epochs, crops=((0, 8), (first / epochs, 16)))
        for epoch in range(epochs):
            assert recipe.sharpness_aware(epoch) == (recipe.crop_size(epoch, 32) == 16) == (epoch >= first)
