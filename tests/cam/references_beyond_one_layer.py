"""Slow float64 references for methods that need more than one layer's activations and gradients.

Each takes (model, image (C, H, W), layer modules, class index), all in float64, and returns the map of the first layer
or of the image.
"""

from __future__ import annotations

import math

import numpy as np
import references
import torch

from whycam.seeds import generator


def _map(name, model, image, layer, class_index):
    a, g, _ = references.activations_and_gradients(model, image, layer, class_index)
    return references.REFERENCES[name](a, g)


def _activations(model, image, layer):
    return references.activations_and_gradients(model, image, layer, 0)[0]


def cam(model, image, layers, class_index):
    """Zhou et al.: the channels weighted by the class's row of the last weight matrix."""
    a = _activations(model, image, layers[0])
    return sum(model.linear.weight[class_index, k].item() * a[k] for k in range(len(a)))


def _gradient_of(model, image, layer, score):
    """A and ∂score(logits)/∂A at ``layer``, by a plain backward pass."""
    captured = {}

    def keep(_module, _inputs, output):
        captured["a"] = output
        output.retain_grad()
        return output.clone()

    handle = layer.register_forward_hook(keep)
    with torch.enable_grad():
        score(model(image[None].clone().requires_grad_())[0]).backward()
    handle.remove()
    return captured["a"].detach()[0], captured["a"].grad[0]


def shapleycam(model, image, layers, class_index):
    """Cai: gradient minus half the second-order term, for the residual softmax; H·A by finite differences along A."""

    def rest(logits):
        return logits[class_index] + logits.log_softmax(0)[class_index]

    def gradient_for(value):
        """∂rest/∂A if the layer's output is ``value``."""
        leaf = value.clone().requires_grad_()
        handle = layers[0].register_forward_hook(lambda *_: leaf[None].clone())
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(rest(model(image[None])[0]), leaf)
        handle.remove()
        return gradient

    a, g = _gradient_of(model, image, layers[0], rest)
    step = 1e-6
    hvp = (gradient_for(a * (1 + step)) - gradient_for(a * (1 - step))) / (2 * step)
    weights = (g - hvp / 2).mean((1, 2))
    return sum(float(weights[k]) * a[k].numpy() for k in range(len(a)))


def finercam(model, image, layers, class_index):
    """Zhang et al.: the class minus 0.6 of a similar one, averaged over the three most similar classes."""
    with torch.no_grad():
        logits = model(image[None])[0]
    similar = [k for k in logits.argsort(descending=True).tolist() if k != class_index][:3]

    def score(values):
        return sum(values[class_index] - 0.6 * values[k] for k in similar) / 3

    a, g = _gradient_of(model, image, layers[0], score)
    return references.gradcam(a.numpy(), g.numpy())


def _bilinear(values, size):
    """Half-pixel bilinear interpolation, point by point."""
    height, width = values.shape
    result = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            fy, fx = y - y0, x - x0
            top = values[y0, x0] * (1 - fx) + values[y0, x1] * fx
            bottom = values[y1, x0] * (1 - fx) + values[y1, x1] * fx
            result[i, j] = top * (1 - fy) + bottom * fy
    return result


def refinecam(model, image, layers, class_index):
    """The product of min-max scaled positive Grad-CAM++ maps at the finest layer's resolution."""
    maps = [np.maximum(_map("gradcam++", model, image, layer, class_index), 0) for layer in layers]
    size = max((raw.shape for raw in maps), key=math.prod)
    result = np.ones(size)
    for raw in maps:
        span = raw.max() - raw.min()
        result *= _bilinear((raw - raw.min()) / span if span else raw * 0, size)
    return result


def smoothgradcam_plus_plus(model, image, layers, class_index):
    """Omeiza et al.: derivatives averaged over four noisy images; activations of the image itself."""
    noise = torch.randn((4, 1, *image.shape), generator=generator(0, "noise n=4 sigma=0.3"), dtype=torch.float32)
    gradients = []
    for k in range(4):
        noisy = image + 0.3 * noise[k, 0].double()
        gradients.append(references.activations_and_gradients(model, noisy, layers[0], class_index)[1])
    first, second, third = (sum(g**power for g in gradients) / 4 for power in (1, 2, 3))
    a = _activations(model, image, layers[0])
    result = np.zeros(a.shape[1:])
    for k in range(len(a)):
        denominator = 2 * second[k] + a[k].sum() * third[k]
        alpha = np.divide(second[k], denominator, out=np.zeros_like(denominator), where=denominator != 0)
        result += (alpha * np.maximum(first[k], 0)).sum() * a[k]
    return result


def random(model, image, layers, _class_index):
    """Uniform weights from the seeded generator."""
    a = _activations(model, image, layers[0])
    draw = generator(0, "random", "layer2[-2]")
    weights = 2 * torch.rand(len(a), generator=draw, dtype=torch.float64).numpy() - 1
    return np.tensordot(weights, a, 1)


def sobel(_model, image, _layers, _class_index):
    """Horizontal and vertical differences of the gray image, with its border repeated."""
    gray = np.pad(image.numpy().mean(0), 1, mode="edge")
    height, width = image.shape[1:]
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            p = gray[i : i + 3, j : j + 3]
            across = (p[:, 2] - p[:, 0]) @ [1, 2, 1]
            down = (p[2] - p[0]) @ [1, 2, 1]
            result[i, j] = math.hypot(across, down)
    return result


def center(_model, image, _layers, _class_index):
    """exp(−r² / 2σ²) with the distance r from the image center in image sides and σ = ¼."""
    height, width = image.shape[1:]
    return np.array(
        [
            [
                math.exp(-(((i + 0.5) / height - 0.5) ** 2 + ((j + 0.5) / width - 0.5) ** 2) / (2 * 0.25**2))
                for j in range(width)
            ]
            for i in range(height)
        ]
    )


def _input_gradient(model, image, class_index):
    x = image[None].clone().requires_grad_()
    with torch.enable_grad():
        model(x)[0, class_index].backward()
    return x.grad[0]


def inputgradient(model, image, _layers, class_index):
    """∂logit/∂x, summed over colors."""
    return _input_gradient(model, image, class_index).sum(0).numpy()


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(context, g):
        (x,) = context.saved_tensors
        return g * (x > 0) * (g > 0)


def guidedbackprop(model, image, _layers, class_index):
    """Springenberg et al.: the ResNet's forward pass written out with guided ReLUs."""
    relu = _GuidedReLU.apply

    def block(module, x):
        y = relu(module.bn1(module.conv1(x)))
        return relu(module.bn2(module.conv2(y)) + module.shortcut(x))

    x = image[None].clone().requires_grad_()
    with torch.enable_grad():
        y = relu(model.bn1(model.conv1(x)))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            for module in stage:
                y = block(module, y)
        model.linear(y.mean((2, 3)))[0, class_index].backward()
    return x.grad[0].sum(0).numpy()


def guidedgradcam(model, image, layers, class_index):
    """Selvaraju et al.: the product with the upsampled positive map."""
    raw = np.maximum(_map("gradcam", model, image, layers[0], class_index), 0)
    return guidedbackprop(model, image, layers, class_index) * _bilinear(raw, tuple(image.shape[1:]))


def integratedgradients(model, image, _layers, class_index):
    """Sundararajan et al. with 32 midpoints and the baseline 0, the data set's mean color."""
    total = sum(_input_gradient(model, image * (k + 0.5) / 32, class_index) for k in range(32))
    return (image * total / 32).sum(0).numpy()


def smoothgrad(model, image, _layers, class_index):
    """Smilkov et al. with 16 noisy images, σ = 0.15 of the image's range."""
    draw = generator(0, "smoothgrad", 16)
    spread = 0.15 * (image.max() - image.min())
    total = torch.zeros_like(image)
    for _ in range(16):
        noise = torch.randn(image.shape, generator=draw, dtype=torch.float32).double()
        total += _input_gradient(model, image + spread * noise, class_index)
    return (total / 16).sum(0).numpy()


REFERENCES = {
    "cam": cam,
    "shapleycam": shapleycam,
    "finercam": finercam,
    "refinecam": refinecam,
    "smoothgradcam++": smoothgradcam_plus_plus,
    "random": random,
    "sobel": sobel,
    "center": center,
    "inputgradient": inputgradient,
    "guidedbackprop": guidedbackprop,
    "guidedgradcam": guidedgradcam,
    "integratedgradients": integratedgradients,
    "smoothgrad": smoothgrad,
}
