"""Slow float64 references of the perturbation methods: one image, explicit loops, the whole network each time.

Each takes (model, image (C, H, W), layer module, class index) and returns the signed map as a NumPy array; a method's
options are keyword arguments. ``REFERENCES`` holds them all by name.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from whycam.seeds import generator


def logits_of(model, image):
    with torch.no_grad():
        return model(image[None])[0]


def output_of(model, image, layer):
    """The layer's output (C, h, w), before any in-place change."""
    captured = []
    handle = layer.register_forward_hook(lambda _m, _i, out: captured.append(out.clone()))
    logits_of(model, image)
    handle.remove()
    return captured[0][0]


def logits_with(model, image, layer, output):
    """The logits if the layer's output is replaced by ``output`` (C, h, w)."""
    handle = layer.register_forward_hook(lambda _m, _i, _out: output[None].clone())
    try:
        return logits_of(model, image)
    finally:
        handle.remove()


def gradient_at(model, image, layer, class_index):
    leaf = []

    def cut(_module, _inputs, out):
        leaf.append(out.detach().clone().requires_grad_())
        return leaf[0].clone()

    handle = layer.register_forward_hook(cut)
    model(image[None])[0, class_index].backward()
    handle.remove()
    return leaf[0].grad[0]


def upsampled(channel, image):
    return F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]


def min_max(tensor):
    return (tensor - tensor.min()) / (tensor.max() - tensor.min())


def softmax_weighted(activations, scores):
    """Σ softmax(scores)_k A_k over the channels with a score."""
    result = np.zeros(activations.shape[1:])
    if not scores:
        return result
    largest = max(scores.values())
    total = sum(math.exp(score - largest) for score in scores.values())
    for k, score in scores.items():
        result += math.exp(score - largest) / total * activations[k].numpy()
    return result


def scorecam(model, image, layer, class_index):
    """Wang et al., algorithm 1, with the black image as the baseline."""
    activations = output_of(model, image, layer)
    baseline = float(logits_of(model, torch.zeros_like(image))[class_index])
    scores = {}
    for k in range(len(activations)):
        if activations[k].max() == activations[k].min():
            continue
        mask = min_max(upsampled(activations[k], image))
        scores[k] = float(logits_of(model, image * mask)[class_index]) - baseline
    return softmax_weighted(activations, scores)


def scorecam_increase(model, image, layer, class_index):
    """Wang et al., definition 3: the increase is the weight."""
    activations = output_of(model, image, layer)
    baseline = float(logits_of(model, torch.zeros_like(image))[class_index])
    result = np.zeros(activations.shape[1:])
    for k in range(len(activations)):
        if activations[k].max() == activations[k].min():
            continue
        mask = min_max(upsampled(activations[k], image))
        result += (float(logits_of(model, image * mask)[class_index]) - baseline) * activations[k].numpy()
    return result


def sscam(model, image, layer, class_index, n=35, sigma=2.0, on="mask"):
    """Naidu & Michael: the mean over n noisy masks (or noisy masked inputs)."""
    activations = output_of(model, image, layer)
    draw = generator(0, "sscam", on)
    shape = image.shape[1:] if on == "mask" else image.shape
    fields = [sigma * torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(n)]
    scores = {}
    for k in range(len(activations)):
        if activations[k].max() == activations[k].min():
            continue
        mask = min_max(upsampled(activations[k], image))
        total = 0.0
        for field in fields:
            masked = image * (mask + field) if on == "mask" else image * mask + field
            total += float(logits_of(model, masked)[class_index])
        scores[k] = total / n
    return softmax_weighted(activations, scores)


def iscam(model, image, layer, class_index, n=10, cumulative=False):
    """Naidu et al.: the mean over a mask that is faded in."""
    activations = output_of(model, image, layer)
    scores = {}
    for k in range(len(activations)):
        if activations[k].max() == activations[k].min():
            continue
        mask = min_max(upsampled(activations[k], image))
        total = 0.0
        factor = 0.0
        for i in range(1, n + 1):
            factor = factor + i / n if cumulative else i / n
            total += float(logits_of(model, factor * mask * image)[class_index])
        scores[k] = total / n
    return softmax_weighted(activations, scores)


def ablationcam(model, image, layer, class_index, relative="size"):
    """Desai & Ramaswamy, equation 3; divided by |y| by default."""
    activations = output_of(model, image, layer)
    score = float(logits_of(model, image)[class_index])
    result = np.zeros(activations.shape[1:])
    for k in range(len(activations)):
        ablated = activations.clone()
        ablated[k] = 0
        drop = score - float(logits_with(model, image, layer, ablated)[class_index])
        divisor = {"size": abs(score), "score": score, "none": 1.0}[relative]
        result += drop / divisor * activations[k].numpy()
    return result


def reciprocam(model, image, layer, class_index, gaussian=False, baseline="min"):
    """Byun & Lee: the class's probability if one position alone is kept."""
    activations = output_of(model, image, layer)
    _, height, width = activations.shape
    kernel = [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1 / 4, 1 / 8], [1 / 16, 1 / 8, 1 / 16]]
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            kept = torch.zeros_like(activations)
            if gaussian:
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            position = (slice(None), i + di, j + dj)
                            kept[position] = kernel[di + 1][dj + 1] * activations[position]
            else:
                kept[:, i, j] = activations[:, i, j]
            result[i, j] = float(logits_with(model, image, layer, kept).softmax(0)[class_index])
    if baseline == "empty":
        empty = torch.zeros_like(activations)
        return result - float(logits_with(model, image, layer, empty).softmax(0)[class_index])
    return result - result.min()


def blurred(image, size=51, sigma=50.0):
    """Gaussian blur, mirrored at the borders without repeating the border itself."""
    half = size // 2
    weights = np.array([math.exp(-((d - half) ** 2) / (2 * sigma**2)) for d in range(size)])
    weights /= weights.sum()
    result = image.numpy()
    for axis in (1, 2):
        length = result.shape[axis]
        out = np.zeros_like(result)
        for i in range(length):
            for d in range(size):
                index = i + d - half
                while not 0 <= index < length:
                    index = -index if index < 0 else 2 * (length - 1) - index
                source = result[:, index] if axis == 1 else result[:, :, index]
                if axis == 1:
                    out[:, i] += weights[d] * source
                else:
                    out[:, :, i] += weights[d] * source
        result = out
    return torch.from_numpy(result)


def groupcam(model, image, layer, class_index, groups=32, quantile=0.7):
    """Zhang et al., section 3 and the authors' code, with the logit as the score."""
    activations = output_of(model, image, layer)
    gradients = gradient_at(model, image, layer, class_index)
    weights = [float(gradients[k].mean()) for k in range(len(activations))]
    group_size = math.ceil(len(activations) / groups)
    blurred_image = blurred(image)
    baseline = float(logits_of(model, blurred_image)[class_index])
    result = np.zeros(activations.shape[1:])
    for start in range(0, len(activations), group_size):
        total = torch.zeros_like(activations[0])
        for k in range(start, min(start + group_size, len(activations))):
            total += weights[k] * activations[k]
        total = total.clamp(min=0)
        bound = float(np.percentile(total.numpy(), 100 * quantile))
        total = torch.where(total > bound, total, torch.zeros_like(total))
        if total.max() == total.min():
            continue
        large = upsampled(total, image)
        mask = min_max(large)
        gain = float(logits_of(model, image * mask + blurred_image * (1 - mask))[class_index]) - baseline
        # The authors add gain · mask at the image's size, which is the resized form of this term.
        result += gain * ((total - large.min()) / (large.max() - large.min())).numpy()
    return result


def fullgrad(model, image, _layer, class_index):
    """Srinivas & Fleuret, equation 8, channel by channel."""
    x = image[None].clone().requires_grad_()
    outputs = []

    def keep(module, _inputs, out):
        out.retain_grad()
        outputs.append((module, out))
        return out.clone()

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kinds)]
    model(x)[0, class_index].backward()
    for handle in handles:
        handle.remove()

    def psi(parts):
        """Absolute value, min-max scaled over the layer, resized and added channel by channel."""
        parts = parts.abs()
        low, high = parts.min(), parts.max()
        total = torch.zeros_like(image[0])
        for channel in parts:
            scaled = (channel - low) / (high - low) if high > low else torch.zeros_like(channel)
            total += upsampled(scaled, image)
        return total

    result = psi((x.grad * x.detach())[0])
    for module, out in outputs:
        if isinstance(module, nn.BatchNorm2d):
            bias = module.bias - module.weight * module.running_mean / (module.running_var + module.eps) ** 0.5
        elif module.bias is not None:
            bias = module.bias
        else:
            continue
        result += psi(torch.stack([b * g for b, g in zip(bias.detach(), out.grad[0], strict=True)]))
    return result.numpy()


REFERENCES = {
    "scorecam": scorecam,
    "sscam": sscam,
    "iscam": iscam,
    "ablationcam": ablationcam,
    "reciprocam": reciprocam,
    "groupcam": groupcam,
    "fullgrad": fullgrad,
}
