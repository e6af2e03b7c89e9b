"""The speed of a training step, compared with its bare convolutions and with an ordinary training loop.

    python benchmarks/training_throughput.py [--recipe record] [--rounds 7] [--set precision=fp32 …]
                                             [--variant compile=true]… [--json FILE]

The candidates take turns in every round, so that a change in the machine's speed affects all of them alike. A turn is
a few steps in a row, after a step that is not timed and fills the caches.

- the step of ``whycam train``: augmentation, forward, backward, optimizer, averaging, on the recipe's batch;
- the bare convolutions of the same network: every convolution's forward pass and both its gradients, on tensors of the
  same shapes and type. No loop with these convolutions can be faster. A sharpness-aware step has two passes, so it is
  compared with twice their time;
- the plain loop: a DataLoader with per-image transforms (on a GPU with four workers), contiguous fp32 tensors, torch's
  defaults, the textbook order of calls;
- every ``--variant``: the step of the recipe with these changes, compared by images/s, because its batch size may
  differ.

On a GPU the bare convolutions are replayed from a CUDA graph, like the step, so that neither waits for kernel launches.
The results are medians over the rounds, with quartiles. On a GPU the step is also given as a share of the measured bf16
matrix rate, at 3.33 GFLOP per image of 32×32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import whycam
from whycam.data import ArraySource
from whycam.device import reuse_freed_memory
from whycam.models.resnet import resnet18
from whycam.training import find_recipe
from whycam.training.augment import plan_epoch
from whycam.training.device_dataset import DeviceDataset
from whycam.training.distributed import DistributedContext, distributed_context
from whycam.training.loop import Loop
from whycam.training.run_options import RunOptions
from whycam.training.state import Position, RunKey
from whycam.training.train import cudnn_flags, initial_model, resolve_precision

PREPROCESS = whycam.Preprocess((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (32, 32))
GFLOP_PER_IMAGE = 3.33
# The epoch whose steps are measured.
EPOCH = 1


def images(n: int) -> ArraySource:
    """Random pixels: the speed does not depend on the content."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    classes = whycam.open_source("bundled").classes
    return ArraySource(pixels, draw.integers(0, 10, n), classes, tuple(map(str, range(n))), "random", "train")


def whycam_step(
    recipe, source: ArraySource, device: torch.device, folder: Path, dist: DistributedContext
) -> Callable[[], None]:
    data = DeviceDataset(source, PREPROCESS, device, recipe.pad, recipe.pad_mode)
    model = initial_model(recipe, 10, 0, device)
    key = RunKey(recipe, 0, source.digest, source.digest)
    loop = Loop(model, data, data, key, folder, dist, options=RunOptions(checkpoint_seconds=1e9), stop=lambda: False)
    plan = plan_epoch(recipe, len(data), data.side, 0, 0).to(device)
    loop.network.train()

    taken = 0

    def step() -> None:
        nonlocal taken
        # Repeat as many steps as contain one update of the average.
        loop.position = Position(EPOCH, taken % min(recipe.averaging_every, loop.steps))
        taken += 1
        with cudnn_flags():
            loop.step(plan)

    return step


def bare_convolutions(recipe, batch: int, side: int, device: torch.device) -> Callable[[], None]:
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    network = resnet18(10).to(device=device, dtype=dtype, memory_format=torch.channels_last)
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                hook = module.register_forward_pre_hook(lambda conv, given: shapes.append((conv, given[0].shape)))
                hooks.callback(hook.remove)
        network(torch.zeros(1, 3, side, side, device=device, dtype=dtype))
    work: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
    for position, (conv, shape) in enumerate(shapes):
        x = torch.randn(batch, *shape[1:], device=device, dtype=dtype).to(memory_format=torch.channels_last)
        # The first convolution needs no gradient for its input.
        x.requires_grad_(position > 0)
        with torch.no_grad():
            gradient = torch.randn_like(conv(x))
        work.append((conv, x, gradient))

    def run() -> None:
        for conv, x, gradient in work:
            torch.autograd.grad(conv(x), [conv.weight] + ([x] if x.requires_grad else []), gradient)

    if device.type != "cuda":
        return run
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with cudnn_flags():
        with torch.cuda.stream(aside):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()

    # A graph does not keep its tensors alive; the default argument does.
    def replay(_keep=work) -> None:
        graph.replay()

    return replay


class PerImage(Dataset):
    """The study's augmentation in the usual form: one image at a time."""

    def __init__(self, source: ArraySource) -> None:
        self.images, self.labels = source.images, source.labels
        self.mean = torch.tensor(PREPROCESS.mean)[:, None, None]
        self.std = torch.tensor(PREPROCESS.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = F.pad(torch.from_numpy(self.images[index]).float() / 255, (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        row, column = torch.randint(25, (2,)).tolist()
        image = image.clone()
        image[:, row : row + 8, column : column + 8] = self.mean
        return (image - self.mean) / self.std, int(self.labels[index])


def plain_loop(source: ArraySource, batch: int, device: torch.device) -> Callable[[], None]:
    model = resnet18(10).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    workers = 4 if device.type == "cuda" else 0
    batches = iter(())

    def step() -> None:
        nonlocal batches
        x, labels = next(batches, (None, None))
        if x is None:
            batches = iter(DataLoader(PerImage(source), batch, shuffle=True, drop_last=True, num_workers=workers))
            x, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """Measured bf16 multiply-add rate in TFLOP/s: the best of ten products of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = min(timed(lambda: a @ b, device, 1) for _ in range(10))
    return 2 * size**3 / seconds / 1e12


def timed(run: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds per call, over ``times`` calls after one that is not timed."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="record")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeat", type=int, help="steps per turn (default: 5 on a CPU, 20 on a GPU)")
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reuse_freed_memory()
    with distributed_context() as dist, tempfile.TemporaryDirectory() as folder:
        device = dist.device
        repeat = options.repeat or (20 if device.type == "cuda" else 5)
        recipe = find_recipe(options.recipe, options.set)
        recipe = recipe.override({"precision": resolve_precision(recipe, device)})
        side = recipe.crop_size(0, 32)
        source = images(max(2048, 4 * recipe.batch_size))
        batches: dict[str, int] = {}
        candidates = {
            "whycam": whycam_step(recipe, source, device, Path(folder), dist),
            "bare convolutions": bare_convolutions(recipe, recipe.batch_size, side, device),
            "plain loop": plain_loop(source, recipe.batch_size, device),
        }
        for changes in options.variant:
            changed = recipe.override(dict(change.split("=", 1) for change in changes))
            candidates[", ".join(changes)] = whycam_step(changed, source, device, Path(folder), dist)
            batches[", ".join(changes)] = changed.batch_size
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for run in candidates.values():
            # On a GPU the first four steps are slower, until the step is captured.
            timed(run, device, 8 if device.type == "cuda" else 1)
        for _ in range(options.rounds):
            for name, run in candidates.items():
                seconds[name].append(timed(run, device, repeat))
        peak = matrix_rate(device) if device.type == "cuda" else None
    for name, batch in batches.items():
        times = batch / recipe.batch_size
        ratio = [times * ours / theirs for ours, theirs in zip(seconds["whycam"], seconds[name], strict=True)]
        print(f"{name}: {spread(ratio)} times as fast as without")
    # A sharpness-aware step has two forward and backward passes.
    passes = 2 if recipe.sharpness_aware(EPOCH) else 1
    share = [passes * bare / ours for bare, ours in zip(seconds["bare convolutions"], seconds["whycam"], strict=True)]
    against_plain = [plain / ours for plain, ours in zip(seconds["plain loop"], seconds["whycam"], strict=True)]
    print(
        f"{recipe.name}, {recipe.precision}, batch {recipe.batch_size}, {side}×{side}, {device}, n = {options.rounds}"
    )
    for name, values in seconds.items():
        print(f"{name:<18} {spread([batches.get(name, recipe.batch_size) / value for value in values])} images/s")
    print(f"share of the bare convolutions' speed: {spread(share)}")
    print(f"times as fast as the plain loop:       {spread(against_plain)}")
    result = {"recipe": recipe.to_dict(), "device": str(device), "rounds": options.rounds, "seconds": seconds}
    if peak is not None:
        flops = passes * GFLOP_PER_IMAGE * (side / 32) ** 2 * 1e9
        used = [recipe.batch_size / value * flops / 1e12 / peak for value in seconds["whycam"]]
        print(f"share of the bf16 matrix rate ({peak:.0f} TFLOP/s measured): {spread(used)}")
        result["matrix_tflops"] = peak
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
