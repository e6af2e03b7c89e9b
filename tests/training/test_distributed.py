"""Two real processes under torchrun train like one process, and restart after a kill."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny import MUON, RECIPE, Tiny, run
from torch import nn

from whycam.training import read_history
from whycam.training.distributed import (
    DistributedContext,
    SyncedBatchNorm2d,
    distributed_context,
    synchronize_batchnorm,
)
from whycam.training.state import load_state

CPU = torch.device("cpu")


def torchrun(*arguments, restarts=0):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", str(restarts), str(Path(__file__).with_name("worker.py")), *map(str, arguments),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of an uninterrupted run in two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_match_one(two, tmp_path):
    run(tmp_path / "one")
    same_curve(tmp_path / "one", two)


def test_two_processes_with_muon_match_one(tmp_path):
    done = torchrun(tmp_path / "two", "recipe", "muon")
    assert done.returncode == 0, done.stderr
    run(tmp_path / "one", recipe=MUON)
    same_curve(tmp_path / "one", tmp_path / "two")


def same_curve(one_folder, two_folder):
    ours, theirs = read_history(one_folder), read_history(two_folder)
    assert len(ours) == len(theirs) == RECIPE.epochs
    for one, both in zip(ours, theirs, strict=True):
        assert both.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert both.test_loss == pytest.approx(one.test_loss, rel=1e-3)
        assert both.images == one.images
        assert abs(both.train_accuracy - one.train_accuracy) <= 1 / 256
    one, both = (load_state(folder / "state.pt").tensors for folder in (one_folder, two_folder))
    for group in ("model", "average"):
        for name, value in one[group].items():
            torch.testing.assert_close(both[group][name], value, rtol=1e-3, atol=1e-4)


def test_after_a_kill_torchrun_restarts_from_the_checkpoint(two, tmp_path):
    """Rank 0 is killed, the process that writes; the next test kills rank 1."""
    done = torchrun(tmp_path / "run", "kill", 0, 3, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    ours, theirs = load_state(tmp_path / "run" / "state.pt"), load_state(two / "state.pt")
    for group, tensors in theirs.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(ours.tensors[group][name], value), f"{group} {name}"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_without_a_restart_the_kill_ends_the_run(tmp_path):
    done = torchrun(tmp_path / "run", "kill", 1, 3)
    assert done.returncode != 0
    position = load_state(tmp_path / "run" / "state.pt").position
    assert (position.epoch, position.step) in ((1, 2), (1, 3))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_cover_the_batch(count):
    parts = [DistributedContext(rank, count, CPU).share(32, 64) for rank in range(count)]
    assert [part[0] for part in parts] + [64] == [32] + [part[1] for part in parts]
    lengths = [stop - start for start, stop in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture
def alone(tmp_path):
    """A process group with one process, so that the communication code runs."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_existing_process_group_is_used_and_kept_open(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with distributed_context("cpu") as dist:
        assert (dist.rank, dist.world_size) == (0, 1)
    assert torch.distributed.is_initialized()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_synced_batchnorm_is_batchnorm(alone, affine, momentum, generator):
    """Output, gradients and running statistics, in training and in evaluation, against torch's own."""
    ours = nn.BatchNorm2d(5, affine=affine, momentum=momentum).double()
    theirs = nn.BatchNorm2d(5, affine=affine, momentum=momentum).double()
    if affine:
        with torch.no_grad():
            ours.weight.uniform_(0.5, 2, generator=generator)
            ours.bias.uniform_(-1, 1, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    assert synchronize_batchnorm(nn.Sequential(ours))[0] is ours
    assert type(ours) is SyncedBatchNorm2d
    for mode in (True, True, False):
        ours.train(mode)
        theirs.train(mode)
        x = 3 + 2 * torch.randn(4, 5, 3, 3, generator=generator, dtype=torch.float64)
        results = []
        for module in (ours, theirs):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            y = module(leaf)
            (y.sin() * torch.arange(y.numel()).view_as(y)).sum().backward()
            results.append([y.detach(), leaf.grad, *(p.grad for p in module.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_compiler_skips_the_communication_of_batchnorm(alone, generator):
    """Tracing the communication took minutes, and the compiler gave up after some layers."""
    model = synchronize_batchnorm(Tiny(10))
    plain = copy.deepcopy(model)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        DistributedContext(0, 1, CPU).wrap(model, RECIPE.override({"compile": True}))
        answer = torch.compile(model, backend="eager", dynamic=False)(x)
    assert not [one for one in said if "Dynamo does not know how to trace" in str(one.message)]
    torch.testing.assert_close(answer, plain(x))
    answer.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_only_batchnorm_is_converted():
    model = Tiny(10)
    names = [name for name, _ in model.named_modules()]
    parameters = [id(p) for p in model.parameters()]
    synchronize_batchnorm(model)
    assert [name for name, _ in model.named_modules()] == names
    assert [id(p) for p in model.parameters()] == parameters
    assert [type(m).__name__ for m in model.children()] == [
        "Conv2d", "SyncedBatchNorm2d", "Conv2d", "SyncedBatchNorm2d", "Linear",
    ]  # fmt: skip
