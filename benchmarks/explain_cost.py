"""Measure the cost of an explanation, in units of the fastest bare forward pass of the same batch.

    python benchmarks/explain_cost.py [--network cifar] [--batch 64] [--rounds 15] [--device cpu] [--slow-peers]
                                      [--where] [--no-tf32] [--json FILE]

In every round, all candidates take turns, so that a change of the machine's speed affects all of them. The result is
the median over the rounds of time / (fastest bare forward pass of that round), with the quartiles. Peers are measured
in the same rounds if they are installed: pytorch-grad-cam, torch-cam, captum. Work that takes a peer more than about
ten forward passes is measured only with --slow-peers. ``--network resnet50`` and ``vit-b16`` are 224×224 networks with
random weights (they need transformers). The last column says by how many MiB a candidate's first turn raised the
process's peak memory. This is a lower bound of the memory that it needs, because freed memory is used again.

On a GPU, the last column is the peak of the memory that one turn allocated. All candidates get the images in the memory
layout in which a bare forward pass is faster. Three turns of each candidate come before the first one that counts. A
turn ends when the GPU has finished. Convolutions run in TensorFloat-32 for all candidates or, with ``--no-tf32``, for
none.

``--where`` profiles a bare forward pass and Grad-CAM at three layers on the CPU. It prints how much time each kind of
operator takes, in units of that bare forward pass. Profiling takes time itself.
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
from torch import nn

import whycam

GRADIENT_METHODS = [
    "gradcam", "hirescam", "gradcamelementwise", "gradcam++", "xgradcam", "layercam", "eigengradcam", "segeigencam",
    "counterfactual", "refinecam",
]  # fmt: skip


class Logits(nn.Module):
    """Wrap a network that returns a dataclass so that it returns its logits: the peers need a tensor."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).logits


def build(name, batch, device):
    """Return (model, images, layers from shallow to deep, the last layer of each stage)."""
    model, images, layers, stages = _build(name, batch)
    return model.to(device), images.to(device), layers, stages


def _build(name, batch):
    if name == "cifar":
        model, spec = whycam.load("cifar10-resnet18")
        images = spec.preprocess(whycam.open_source("bundled").read(range(batch)))
        return model, images, ["layer2[-2]", "layer3[-2]", "layer4[-1]"], [f"layer{i}[-1]" for i in (1, 2, 3, 4)]
    import transformers

    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224)
    if name == "resnet50":
        model = Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))).eval()
        stages = [f"network.resnet.encoder.stages[{i}]" for i in range(4)]
        return model.to(memory_format=torch.channels_last), images, stages[1:], stages
    model = Logits(transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))).eval()
    blocks = [path for path, module in model.named_modules() if path.endswith("layernorm_before")]
    return model, images, [blocks[5], blocks[8], blocks[11]], [blocks[i] for i in (2, 5, 8, 11)]


def bare_forwards(model, images):
    """Return the bare forward pass in both memory layouts; the faster one is the unit."""

    def bare(x):
        with torch.inference_mode():
            return model(x)

    channels_last, contiguous = images.contiguous(memory_format=torch.channels_last), images.contiguous()
    return {
        "bare forward, channels last": lambda: bare(channels_last),
        "bare forward, contiguous": lambda: bare(contiguous),
    }


def in_the_faster_layout(model, images):
    """Return the images in the memory layout in which a bare forward pass on a GPU is fastest."""
    found = {name: [] for name in (torch.contiguous_format, torch.channels_last)}
    with torch.inference_mode():
        for _ in range(10):
            for layout, times in found.items():
                given = images.contiguous(memory_format=layout)
                times.append(seconds(lambda given=given: model(given), images.device))
    layout = min(found, key=lambda layout: statistics.median(found[layout][3:]))
    print(f"all images are {str(layout).removeprefix('torch.')}")
    return images.contiguous(memory_format=layout)


def seconds(run, device):
    """Return the seconds that ``run`` takes, including all work that it starts on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ours(model, images, layers, stages):
    classes = model(images[:1]).shape[1]
    targets = {"predicted": None, "true": torch.arange(len(images), device=images.device) % classes}
    cases = {
        "Grad-CAM, last layer": (layers[-1:], ["gradcam"], None),
        "Grad-CAM, three layers": (layers, ["gradcam"], None),
        "Grad-CAM, three layers, two targets": (layers, ["gradcam"], targets),
        "ten gradient methods, three layers, two targets": (layers, GRADIENT_METHODS, targets),
        "Refine-CAM, four stages": (stages, ["refinecam"], None),
    }
    for name, (where, methods, target) in cases.items():
        explainer = whycam.Explainer(model, where, methods, target)
        yield f"whycam: {name}", lambda explainer=explainer: explainer(images)


def peers(model, images, layers, stages, slow):
    """The same maps from other libraries, called as their documentation says."""
    from whycam.cam import resolve_layer

    modules, ends = ([resolve_layer(model, layer).module for layer in group] for group in (layers, stages))
    classes = model(images).argmax(1).tolist()
    places = [("last layer", modules[2:]), ("three layers", modules)]
    if any(isinstance(module, nn.LayerNorm) for module in modules):
        return  # every peer needs its own reshape function for tokens
    yield from incumbent(model, images, modules, ends, places, slow)
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        pass
    else:
        for name, where in places:
            grads = [LayerGradCam(model, layer) for layer in where]
            yield (
                f"captum: Grad-CAM, {name}",
                lambda grads=grads: [grad.attribute(images, target=classes) for grad in grads],
            )
    try:
        from torchcam.methods import GradCAM as TorchCam
    except ImportError:
        pass
    else:
        for name, where in places:

            def run(where=where):
                with TorchCam(model, where) as cam:
                    return cam(classes, model(images))

            yield f"torch-cam: Grad-CAM, {name}", run


def incumbent(model, images, modules, ends, places, slow):
    try:
        import pytorch_grad_cam as pgc
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        return
    for name, where in places:
        # One object per layer: a single object would average the layers into one map.
        cams = [pgc.GradCAM(model=model, target_layers=[layer]) for layer in where]
        yield (
            f"pytorch-grad-cam: Grad-CAM, {name}",
            lambda cams=cams: [cam(input_tensor=images, targets=None) for cam in cams],
        )
    if not slow:
        return
    kinds = [
        pgc.GradCAM, pgc.HiResCAM, pgc.GradCAMElementWise, pgc.GradCAMPlusPlus, pgc.XGradCAM, pgc.LayerCAM,
        pgc.EigenGradCAM, pgc.SegEigenCAM, pgc.ShapleyCAM, pgc.FinerCAM,
    ]  # fmt: skip
    true = [ClassifierOutputTarget(index % 10) for index in range(len(images))]

    def ten():
        for kind in kinds:
            for layer in modules:
                for target in (None, true):
                    kind(model=model, target_layers=[layer])(input_tensor=images, targets=target)

    yield "pytorch-grad-cam: ten gradient methods, three layers, two targets", ten
    refine = pgc.RefineCAM(model=model, target_layers=ends)
    yield "pytorch-grad-cam: Refine-CAM, four stages", lambda: refine(input_tensor=images, targets=None)


def measure(candidates, rounds, device):
    added = {}
    for name, run in candidates.items():
        if device.type == "cuda":
            for _ in range(3):  # the first turns choose algorithms and allocate workspaces
                run()
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            added[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
            continue
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        added[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(seconds(run, device))
    return times, added


KINDS = {
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::_conv", "aten::cudnn_convolution"),
    "convolutions, backward": ("aten::convolution_backward",),
    "matrix products": ("aten::addmm", "aten::bmm", "aten::mm"),
    "normalization": ("aten::native_batch_norm", "aten::native_layer_norm"),
}


def where_the_time_goes(candidates, names, rounds):
    """Print the profiled time of each named candidate by kind of operator; the first candidate is the unit."""
    unit = None
    for name in names:
        candidates[name]()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(rounds):
                candidates[name]()
        kinds = dict.fromkeys([*KINDS, "all else"], 0.0)
        for event in profiler.key_averages():
            kind = next((kind for kind, starts in KINDS.items() if event.key.startswith(starts)), "all else")
            kinds[kind] += event.self_cpu_time_total
        unit = unit or sum(kinds.values())
        shares = ", ".join(f"{kind} {time / unit:.2f}" for kind, time in kinds.items() if time / unit >= 0.005)
        print(f"{name}: {sum(kinds.values()) / unit:.2f}, of which {shares}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["cifar", "resnet50", "vit-b16"], default="cifar")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--slow-peers", action="store_true")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--no-tf32", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_gpu = options.device.type == "cuda"
    if on_gpu and options.where:
        parser.error("--where profiles the CPU: use it with --device cpu")
    if options.no_tf32:
        torch.backends.cudnn.allow_tf32 = False

    model, images, layers, stages = build(options.network, options.batch, options.device)
    if on_gpu:
        images = in_the_faster_layout(model, images)
    bare = bare_forwards(model, images)
    candidates = bare | dict(ours(model, images, layers, stages))
    candidates |= dict(peers(model, images, layers, stages, options.slow_peers))
    times, added = measure(candidates, options.rounds, options.device)

    units = [min(times[name][i] for name in bare) for i in range(options.rounds)]
    where = f"{torch.get_num_threads()} threads"
    if on_gpu:
        where = f"{torch.cuda.get_device_name(options.device)}, {'float32' if options.no_tf32 else 'TensorFloat-32'}"
    print(f"{options.network}, torch {torch.__version__}, {where}, batch {options.batch}, n = {options.rounds}")
    print(f"the unit is {1000 * statistics.median(units):.2f} ms")
    print(f"{'':<66} median   (quartiles)        memory")
    result = {}
    for name, taken in times.items():
        ratios = [second / unit for second, unit in zip(taken, units, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {"median": middle, "quartiles": [low, high], "memory_mib": added[name]}
        print(f"{name:<66} {middle:6.2f}   ({low:.2f} to {high:.2f})   {added[name]:6.0f}")
    if options.where:
        fastest = min(bare, key=lambda name: statistics.median(times[name]))
        where_the_time_goes(candidates, [fastest, "whycam: Grad-CAM, three layers"], options.rounds)
    if options.json:
        record = {"network": options.network, "rounds": options.rounds, "batch": options.batch, "ratios": result}
        options.json.write_text(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
