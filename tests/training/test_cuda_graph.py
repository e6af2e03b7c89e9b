"""Training on a GPU: a step that is replayed from a CUDA graph equals one that is launched kernel by kernel."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny import RECIPE, Tiny, run, small_resnet
from torch.nn import functional as F

from whycam.training.loop import Loop
from whycam.training.muon import orthogonalize
from whycam.training.state import load_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SGD = RECIPE.override({"epochs": 4, "drop_last": False})
MUON = SGD.override({"optimizer": "muon", "momentum": 0.8, "other_rate": 2.0, "bias_rate": 3.0})
SHARP = MUON.override({"sam_radius": 0.05, "sam_from": 0.25})


@pytest.fixture
def loops(monkeypatch):
    """Every loop that runs, to inspect it afterwards."""
    found: list[Loop] = []
    plain = Loop.run

    def seen(self):
        found.append(self)
        return plain(self)

    monkeypatch.setattr(Loop, "run", seen)
    return found


@contextlib.contextmanager
def deterministic_kernels():
    """The same cuDNN kernels in every run."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def weights(folder):
    return load_state(folder / "state.pt").tensors["model"]


@pytest.mark.parametrize("recipe", [SGD, MUON, SHARP, MUON.override({"averaging": "lookahead", "precision": "bf16"})])
def test_a_captured_step_equals_the_normal_one(tmp_path, loops, recipe):
    """Two crop sizes and an incomplete last batch give four shapes, each captured; the learning rate always changes.

    Steps are sharpness-aware from the second of the first size's two epochs on: its shapes are captured both ways.
    """
    with deterministic_kernels():
        run(tmp_path / "graph", recipe=recipe, images=240, device="cuda", network=small_resnet)
        run(tmp_path / "plain", recipe=recipe.override({"graph": False}), images=240, device="cuda",
            network=small_resnet)  # fmt: skip
    graphed_step = loops[0].graphed_step
    assert loops[1].graphed_step is None
    assert not graphed_step.failed
    replayed = [capture for capture in graphed_step.captures.values() if capture.graph is not None]
    assert len(graphed_step.captures) == (6 if recipe.sam_radius else 4)
    assert len(replayed) >= 2
    theirs = weights(tmp_path / "plain")
    tolerance = 1e-4 if recipe.precision == "fp32" and recipe.optimizer == "sgd" else 5e-2
    for name, mine in weights(tmp_path / "graph").items():
        if mine.is_floating_point():
            error = (mine - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-3)
            assert float(error) < tolerance, name
    assert loops[0].history[-1].train_loss == pytest.approx(loops[1].history[-1].train_loss, rel=tolerance)
    assert loops[0].history[-1].train_accuracy > 0.2


def test_zero_padding_does_not_change_orthogonalize():
    """A ResNet's filters, batched by their number of rows, in bfloat16, against float64."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1)]
    given = [torch.randn(shape, generator=draw) for shape in shapes]
    exact = orthogonalize([matrix.double() for matrix in given])
    for mine, right in zip(orthogonalize([matrix.cuda() for matrix in given]), exact, strict=True):
        assert mine.shape == right.shape
        assert float((mine.cpu() - right).norm() / right.norm()) < 0.05


def test_gpu_loss_equals_cpu_loss(tmp_path):
    """The first epoch's loss, to four digits."""
    losses = [
        run(tmp_path / device, recipe=SGD.override({"epochs": 1}), device=device, network=small_resnet)
        .history[0].train_loss
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


class Waits(Tiny):
    """Reads its own output on the host, so it cannot be captured."""

    def forward(self, x):
        answer = super().forward(x)
        return answer if float(answer.detach().sum()) > -1e9 else -answer


def test_a_network_that_waits_for_the_gpu_is_not_captured(tmp_path, loops):
    result = run(tmp_path / "run", recipe=SGD, device="cuda", network=Waits)
    assert result.finished
    assert loops[0].graphed_step.failed
    with deterministic_kernels():
        plain = run(tmp_path / "plain", recipe=SGD.override({"graph": False}), device="cuda", network=Tiny)
    assert result.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=1e-2)


class WaitsAndDraws(Waits):
    """Also uses the GPU's random generator, after the part that cannot be captured."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)


def test_a_failed_capture_restores_stream_and_generator(tmp_path, loops):
    """Neither the capture's stream stays current nor does the generator wait for the capture's end."""
    before = torch.cuda.current_stream()
    result = run(tmp_path / "run", recipe=SGD, device="cuda", network=WaitsAndDraws)
    assert result.finished
    assert loops[0].graphed_step.failed
    assert torch.cuda.current_stream() == before
    assert 0 < float(torch.rand(1000, device="cuda").mean()) < 1


def test_resume_on_a_gpu(tmp_path):
    """The state does not depend on captures."""
    asked = []

    def stop(event):
        if not asked and getattr(event, "step", 0) == 0 and getattr(event, "epoch", 0) == 2:
            asked.append(event)
            raise KeyboardInterrupt

    with deterministic_kernels():
        whole = run(tmp_path / "whole", recipe=MUON, device="cuda")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", recipe=MUON, device="cuda", on_progress=stop)
        resumed = run(tmp_path / "run", recipe=MUON, device="cuda", resume=True)
    assert asked
    assert len(resumed.history) == 4
    assert resumed.history[-1].train_loss == pytest.approx(whole.history[-1].train_loss, rel=1e-2)
