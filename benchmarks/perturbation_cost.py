"""Measure the cost of methods that run the network again, in forward passes per image.

    python benchmarks/perturbation_cost.py [--batch 64] [--rounds 5] [--only PART] [--no-peers] [--cpu-time]
                                           [--device cpu] [--rows 128]

The unit is the fastest bare forward pass. Bare forward passes of the same batch are measured right before and right
after each candidate, so that a change of the machine's speed affects both. The result is the median over the rounds,
with the range. Beside it stands the limit: the number of forward passes that the method's definition requires. For
Ablation-CAM on a tail it is the tail's share of a forward pass (measured) times the number of channels that are not 0.
For Score-CAM it is the number of channels that are not constant. Both add one forward pass to find these channels.

Peers are measured in the same process if they are installed (pytorch-grad-cam, torch-cam); this takes long. The last
column says by how many MiB a candidate's first turn raised the process's peak memory. This is a lower bound of the
memory that it needs, because freed memory is used again. On a machine that runs other work too, use one thread and
``--cpu-time``, which measures CPU time instead of wall-clock time.

On a GPU, a turn ends when the GPU has finished, and the memory is the peak of what one turn allocated. ``--rows`` is
the number of perturbed images or activations in one batch, for all candidates: a GPU has memory for more than the
usual 128.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

import whycam
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import resolve_layer
from whycam.cam.passes.tail import Tail

CLOCK = time.perf_counter
DEVICE = torch.device("cpu")
ROWS = 128


def finish():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def seconds(run):
    finish()
    start = CLOCK()
    run()
    finish()
    return CLOCK() - start


def resident_mib():
    """Return the memory in use now, in MiB; on a GPU, `peak_mib` counts from this call on."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(DEVICE)
        return torch.cuda.memory_allocated(DEVICE) / 2**20
    return peak_mib()


def peak_mib():
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated(DEVICE) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outputs_of(model, images, layer):
    seen = []
    handle = layer.module.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    with torch.inference_mode():
        model(images)
    handle.remove()
    return seen[0]


def tail_of(model, images, layer, size):
    """Return the pass of all layers after ``layer`` on ``size`` rows, and a whole forward pass of as many images."""
    with torch.no_grad():
        tail = Tail(model, layer, Inputs.of(images))
    rows = torch.arange(size) % len(images)
    output = outputs_of(model, images, layer).clone()[rows]
    whole = images[rows]

    def run(what):
        with torch.no_grad():
            return what()

    return (lambda: run(lambda: tail(output, rows))), (lambda: run(lambda: model(whole))), tail.why_all


def share(model, images, layer, rounds, size=128):
    """Return the time of the tail divided by that of a whole forward pass of as many images (median over rounds)."""
    tail, whole, why = tail_of(model, images, layer, size)
    if why is not None:
        print(f"{layer.name}: the whole network runs ({why})")
    tail(), whole()
    return statistics.median(seconds(tail) / seconds(whole) for _ in range(max(rounds, 5)))


def explained(model, images, layer, method):
    if method in ("ablationcam", "scorecam", "reciprocam", "groupcam"):
        method = f"{method}(batch_size={ROWS})"
    explainer = whycam.Explainer(model, layer, method)
    return lambda: explainer(images)


def ours(model, images, rounds):
    """Yield (name, run, limit in forward passes per image); a backward pass to the images counts as one more."""
    batch = len(images)
    for layer in ("layer4[-1]", "layer3[-2]"):
        found = resolve_layer(model, layer)
        output = outputs_of(model, images, found).flatten(2)
        active = float((output != 0).any(dim=2).sum()) / batch
        if layer == "layer4[-1]":
            limit = 1.0
        else:
            part = share(model, images, found, rounds)
            limit = 1 + active * part
            print(f"{layer}: {active:.1f} of {output.shape[1]} channels active, tail {part:.3f} of a forward pass")
        yield f"Ablation-CAM, {layer}", explained(model, images, layer, "ablationcam"), limit
    output = outputs_of(model, images, resolve_layer(model, "layer4[-1]")).flatten(2)
    live = float((output.amax(dim=2) > output.amin(dim=2)).sum()) / batch
    print(f"layer4[-1]: {live:.1f} of {output.shape[1]} channels live")
    yield "Score-CAM, layer4[-1]", explained(model, images, "layer4[-1]", "scorecam"), 1 + live
    places = outputs_of(model, images, resolve_layer(model, "layer3[-2]"))[0, 0].numel()
    part = share(model, images, resolve_layer(model, "layer3[-2]"), rounds)
    yield "Recipro-CAM, layer3[-2]", explained(model, images, "layer3[-2]", "reciprocam"), 1 + part * places
    yield "Group-CAM, layer4[-1]", explained(model, images, "layer4[-1]", "groupcam"), 34.0
    yield "FullGrad", explained(model, images, "layer4[-1]", "fullgrad"), 2.0
    yield "Grad-CAM augmented, layer4[-1]", explained(model, images, "layer4[-1]", "augmented(gradcam)"), 6.0


def peers(model, images):
    """Yield (library: method, run) of the installed peers, called as their documentation says."""
    yield from incumbent(model, images)
    try:
        from torchcam.methods import ScoreCAM
    except ImportError:
        return
    classes = model(images).argmax(1).tolist()

    def run():
        with ScoreCAM(model, [model.layer4[-1]], batch_size=ROWS) as cam:
            return cam(classes, model(images))

    yield "torch-cam: Score-CAM, layer4[-1]", run


def incumbent(model, images):
    try:
        from pytorch_grad_cam import AblationCAM, FullGrad, GradCAM, ScoreCAM
        from pytorch_grad_cam.ablation_layer import AblationLayer
    except ImportError:
        return
    last, third = model.layer4[-1], model.layer3[-2]

    def call(kind, layer, **options):
        def run():
            cam = kind(model=model, target_layers=[layer], **options)
            cam.batch_size = ROWS
            return cam(input_tensor=images, targets=None, **({"aug_smooth": True} if kind is GradCAM else {}))

        return run

    name = "pytorch-grad-cam"
    yield f"{name}: Ablation-CAM, layer4[-1]", call(AblationCAM, last, ablation_layer=AblationLayer())
    yield f"{name}: Ablation-CAM, layer3[-2]", call(AblationCAM, third, ablation_layer=AblationLayer())
    yield f"{name}: Score-CAM, layer4[-1]", call(ScoreCAM, last)
    yield f"{name}: FullGrad", call(FullGrad, last)
    yield f"{name}: Grad-CAM augmented, layer4[-1]", call(GradCAM, last)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure only candidates whose name contains this")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time: for one thread on a shared machine")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device.type == "cuda" and options.cpu_time:
        parser.error("--cpu-time does not include the work of a GPU: use it with --device cpu")
    return options


def main():
    global CLOCK, DEVICE, ROWS
    options = parse_options()
    DEVICE, ROWS = options.device, options.rows
    CLOCK = time.process_time if options.cpu_time else time.perf_counter

    model, spec = whycam.load("cifar10-resnet18", device=DEVICE)
    images = spec.preprocess(whycam.open_source("bundled").read(range(options.batch))).to(DEVICE)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def bare():
        with torch.inference_mode():
            model(channels_last)

    candidates = {f"whycam: {name}": (run, limit) for name, run, limit in ours(model, images, options.rounds)}
    if not options.no_peers:
        candidates |= {name: (run, None) for name, run in peers(model, images)}
    where = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, batch {options.batch}, {ROWS} rows, n = {options.rounds}")
    for _ in range(3):
        bare()
    print(f"a bare forward pass takes {1000 * statistics.median(seconds(bare) for _ in range(5)):.2f} ms")
    print(f"{'forward passes per image':<52} median   (range)              memory   limit   compared with the limit")
    result = {}
    for name, (run, limit) in candidates.items():
        if options.only not in name:
            continue
        resident = resident_mib()
        if limit is not None and limit < 50:
            run()  # Warm up; candidates that run for minutes do not need it.
        ratios = []
        for turn in range(options.rounds):
            before = min(seconds(bare) for _ in range(2))
            taken = seconds(run)
            if not turn:
                memory = peak_mib() - resident
            ratios.append(taken / min(before, *(seconds(bare) for _ in range(2))))
        middle = statistics.median(ratios)
        result[name] = {"median": middle, "range": [min(ratios), max(ratios)], "limit": limit, "memory_mib": memory}
        over = "" if limit is None else f"{limit:8.2f}   {100 * (middle / limit - 1):+.0f}%"
        print(f"{name:<52} {middle:7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})  {memory:6.0f} {over}", flush=True)
    if options.json:
        record = {"rounds": options.rounds, "batch": options.batch, "ratios": result}
        options.json.write_text(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
