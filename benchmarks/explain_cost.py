"""What an explanation costs, in units of the fastest bare forward pass of the same batch.

    python benchmarks/explain_cost.py [--batch 64] [--rounds 15] [--json FILE]

All candidates take turns in every round, so that a machine whose speed drifts slows all of them alike; quoted is the
median over the rounds of time / (fastest bare forward of that round), with the quartiles. Peers are measured in the
same rounds where they are installed: pytorch-grad-cam, torch-cam, captum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import whycam

STUDY_LAYERS = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]


def bare_forwards(model, images):
    """The forward pass alone, in both memory layouts; the faster one is the unit."""
    other = whycam.load("cifar10-resnet18")[0].to(memory_format=torch.contiguous_format)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def bare(network, x):
        with torch.inference_mode():
            return network(x)

    return {
        "bare forward, channels last": lambda: bare(model, channels_last),
        "bare forward, contiguous": lambda: bare(other, images),
    }


def ours(model, images):
    targets = {"predicted": None, "true": torch.arange(len(images)) % 10}
    cases = {
        "Grad-CAM, layer4[-1]": (["layer4[-1]"], ["gradcam"], None),
        "Grad-CAM, three layers": (STUDY_LAYERS, ["gradcam"], None),
        "Grad-CAM + HiResCAM, three layers, two targets": (STUDY_LAYERS, ["gradcam", "hirescam"], targets),
    }
    for name, (layers, methods, target) in cases.items():
        explainer = whycam.Explainer(model, layers, methods, target)
        yield f"whycam: {name}", lambda explainer=explainer: explainer(images)


def peers(model, images):
    """The same maps by other libraries, as their documentation has them called."""
    modules = [model.layer2[-2], model.layer3[-2], model.layer4[-1]]
    classes = model(images).argmax(1).tolist()
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError:
        pass
    else:
        for name, layers in [("layer4[-1]", modules[2:]), ("three layers", modules)]:
            # One object per layer: a single one would average the layers into one map.
            cams = [GradCAM(model=model, target_layers=[layer]) for layer in layers]
            yield f"pytorch-grad-cam: Grad-CAM, {name}", lambda cams=cams: [cam(input_tensor=images) for cam in cams]
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        pass
    else:
        for name, layers in [("layer4[-1]", modules[2:]), ("three layers", modules)]:
            grads = [LayerGradCam(model, layer) for layer in layers]
            yield (
                f"captum: Grad-CAM, {name}",
                lambda grads=grads: [grad.attribute(images, target=classes) for grad in grads],
            )
    try:
        from torchcam.methods import GradCAM as TorchCam
    except ImportError:
        pass
    else:
        for name, layers in [("layer4[-1]", modules[2:]), ("three layers", modules)]:

            def run(layers=layers):
                with TorchCam(model, layers) as cam:
                    return cam(classes, model(images))

            yield f"torch-cam: Grad-CAM, {name}", run


def measure(candidates, rounds):
    for run in candidates.values():
        run()
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model, spec = whycam.load("cifar10-resnet18")
    images = spec.preprocess(whycam.open_source("bundled").read(range(options.batch)))
    bare = bare_forwards(model, images)
    candidates = bare | dict(ours(model, images)) | dict(peers(model, images))
    times = measure(candidates, options.rounds)

    units = [min(times[name][i] for name in bare) for i in range(options.rounds)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}, n = {options.rounds}")
    print(f"{'':<62} median   (quartiles)")
    result = {}
    for name, seconds in times.items():
        ratios = [second / unit for second, unit in zip(seconds, units, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {"median": middle, "quartiles": [low, high]}
        print(f"{name:<62} {middle:6.2f}   ({low:.2f} to {high:.2f})")
    if options.json:
        record = {"rounds": options.rounds, "batch": options.batch, "ratios": result}
        options.json.write_text(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
