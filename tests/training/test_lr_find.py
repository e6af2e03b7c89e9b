"""The range test: its suggestion, and that it restores everything."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tiny import PREPROCESS, RECIPE, Tiny, small
from torch.nn import functional as F

from whycam.errors import WhycamError
from whycam.training import lr_find, lr_range_test
from whycam.training.optim import make_optimizer
from whycam.training.plots import draw_lr_find, write_figure


def batches(n=10_000, size=16):
    draw = torch.Generator().manual_seed(0)
    for _ in range(n):
        labels = torch.randint(10, (size,), generator=draw)
        yield torch.randn(size, 3, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1) / 5, labels


def snapshot(model, optimizer):
    """The whole state of both, as bytes."""
    buffer = io.BytesIO()
    modes = [module.training for module in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    torch.save([model.state_dict(), optimizer.state_dict(), modes, gradients], buffer)
    return buffer.getvalue()


def prepared(used, **fields):
    """A network and its optimizer; with ``used`` after some steps and with gradients."""
    model = Tiny(10)
    optimizer = make_optimizer(model, RECIPE.override(fields))
    if used:
        for x, labels in batches(3):
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
    model.bn1.eval()
    return model, optimizer


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam", "muon"])
def test_model_and_optimizer_are_restored(kind, used):
    model, optimizer = prepared(used, optimizer=kind)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = snapshot(model, optimizer)
    identities = [id(p) for p in model.parameters()]
    result = lr_range_test(model, optimizer, batches(), iterations=60)
    assert max(result.losses) != min(result.losses)
    assert snapshot(model, optimizer) == before
    assert [id(p) for p in model.parameters()] == identities
    # The next step is the same too.
    for one, its in ((model, optimizer), (twin, twin_optimizer)):
        x, labels = next(batches())
        its.zero_grad()
        F.cross_entropy(one(x), labels).backward()
        its.step()
    assert snapshot(model, optimizer) == snapshot(twin, twin_optimizer)


def test_model_and_optimizer_are_restored_after_an_exception():
    model, optimizer = prepared(True)
    before = snapshot(model, optimizer)
    with pytest.raises(WhycamError) as error:
        lr_range_test(model, optimizer, batches(17))
    assert str(error.value) == "the range test needs 200 batches, but there are only 17"
    assert snapshot(model, optimizer) == before


def test_rates_and_smoothing_equal_their_definitions():
    model, optimizer = prepared(False)
    result = lr_range_test(model, optimizer, batches(), start=1e-4, end=1e-1, iterations=31, smoothing=0.8)
    assert not result.exploded
    assert result.lrs == pytest.approx([10 ** (-4 + i / 10) for i in range(31)])
    average = 0.0
    for i, loss in enumerate(result.losses):
        average = 0.8 * average + 0.2 * loss
        assert result.smoothed[i] == pytest.approx(average / (1 - 0.8 ** (i + 1)))
    assert result.suggestion in result.lrs


@pytest.mark.parametrize(("smoothing", "unlucky"), [(0.0, 0), (0.9, 0), (0.9, 3)])
def test_the_suggestion_is_where_a_known_loss_falls_most_steeply(smoothing, unlucky):
    """The model's loss depends only on the learning rate, which it reads from the optimizer.

    A few bad batches at the start, where the average is over few losses, must not be taken for a fall.
    """
    steep, seen = 1e-2, []

    class Sigmoid(Tiny):
        def forward(self, x):
            # The loss falls like a logistic function of log lr with its steepest point at 1e-2.
            lr = torch.tensor(float(optimizer.param_groups[0]["lr"]))
            p = 0.1 + 0.8 * torch.sigmoid(3 * (lr.log() - torch.tensor(steep).log()))
            seen.append(lr)
            p = p * 0.6 if len(seen) <= unlucky else p
            return (p.log() - ((1 - p) / 9).log()) * F.one_hot(labels, 10) + 0 * super().forward(x)

    x, labels = next(batches())
    model = Sigmoid(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = lr_range_test(model, optimizer, ((x, labels) for _ in range(200)), smoothing=smoothing)
    # The average is late by up to ten of the 200 steps over six decades.
    assert steep / 2.5 < result.suggestion < steep * (1.6 if smoothing == 0 else 2.5)


def test_every_group_has_its_scaled_learning_rate():
    """As in a training: filters, other weights, gains, and biases."""
    model, optimizer = prepared(False, optimizer="muon", other_rate=10, bias_rate=3)
    seen = []
    lr_range_test(
        model, optimizer, batches(), start=0.001, end=0.1, iterations=10,
        on_step=lambda _: seen.append([group["lr"] for group in optimizer.param_groups]),
    )  # fmt: skip
    assert seen[0] == pytest.approx([0.001, 0.01, 0.01, 0.03])
    assert seen[-1] == pytest.approx([0.1, 1, 1, 3])


def test_range_test_of_a_recipe_stops_when_the_loss_explodes(tmp_path):
    state = torch.random.get_rng_state()
    result = lr_find(RECIPE, small(0, 256), preprocess=PREPROCESS, network=Tiny, device="cpu", end=1e6, iterations=100)
    again = lr_find(RECIPE, small(0, 256), preprocess=PREPROCESS, network=Tiny, device="cpu", end=1e6, iterations=100)
    assert result == again
    assert torch.equal(state, torch.random.get_rng_state())
    assert result.exploded
    assert len(result.lrs) < 100
    assert 1e-5 < result.suggestion < result.lrs[-1]
    axes = draw_lr_find(result).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [list(result.lrs)] * 2
    path = write_figure(draw_lr_find(result), tmp_path / "lr.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_wrong_range_errors():
    model, optimizer = prepared(False)
    for options in ({"start": 0.0}, {"start": 1.0, "end": 0.1}, {"iterations": 3}):
        with pytest.raises(WhycamError, match="it needs 0 < start < end and at least 10 iterations"):
            lr_range_test(model, optimizer, batches(), **options)
    bad = ((torch.full((4, 3, 8, 8), float("nan")), torch.zeros(4, dtype=torch.int64)) for _ in range(20))
    with pytest.raises(WhycamError, match="loss is not finite at a learning rate of 1e-05; start lower"):
        lr_range_test(model, optimizer, bad)
