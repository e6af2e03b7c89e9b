"""Slow float64 references of the methods, written from their papers: one image, explicit loops, no shared code."""

from __future__ import annotations

import numpy as np
import torch


def activations_and_gradients(model, image, layer, class_index):
    """(C, h, w) float64 activations at ``layer`` and ∂logit/∂activations, by a plain backward through everything.

    ``model`` and ``image`` (C, H, W) are float64.
    """
    captured = {}

    def keep(_module, _inputs, output):
        captured["activations"] = output
        output.retain_grad()
        # A copy: the next layer may overwrite its input.
        return output.clone()

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(image[None].clone().requires_grad_())
            logits[0, class_index].backward()
    finally:
        handle.remove()
    tensor = captured["activations"]
    return tensor.detach()[0].numpy(), tensor.grad[0].numpy(), float(logits[0, class_index].detach())


def gradcam(activations, gradients):
    """Selvaraju et al., equations 1 and 2, without the ReLU."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        weight = 0.0
        for i in range(height):
            for j in range(width):
                weight += gradients[k, i, j]
        weight /= height * width
        result += weight * activations[k]
    return result


def hirescam(activations, gradients):
    """Draelos & Carin, equation 4."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                result[i, j] += gradients[k, i, j] * activations[k, i, j]
    return result


def gradcamelementwise(activations, gradients):
    """HiResCAM with each product's negative part cut off."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                result[i, j] += max(0.0, gradients[k, i, j] * activations[k, i, j])
    return result


def gradcam_plus_plus(activations, gradients):
    """Chattopadhay et al.: α from the second and third derivatives of Y = exp(S), the factor exp(S) divided out."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        total, weight = 0.0, 0.0
        for i in range(height):
            for j in range(width):
                total += activations[k, i, j]
        for i in range(height):
            for j in range(width):
                g = gradients[k, i, j]
                denominator = 2 * g**2 + total * g**3
                if denominator != 0:
                    weight += g**2 / denominator * max(0.0, g)
        result += weight * activations[k]
    return result


def xgradcam(activations, gradients):
    """Fu et al.: gradients averaged by activation; a channel whose activations cancel has weight 0."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        total = sum(activations[k, i, j] for i in range(height) for j in range(width))
        size = sum(abs(activations[k, i, j]) for i in range(height) for j in range(width))
        if abs(total) <= 1e-6 * size:
            continue
        weight = sum(gradients[k, i, j] * activations[k, i, j] / total for i in range(height) for j in range(width))
        result += weight * activations[k]
    return result


def layercam(activations, gradients):
    """Jiang et al.: positive gradients as weights, without the tanh that the paper uses to display shallow layers."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                result[i, j] += max(0.0, gradients[k, i, j]) * activations[k, i, j]
    return result


def counterfactual(activations, gradients):
    """Selvaraju et al., counterfactual explanations: the weights are means of the negated gradients."""
    return gradcam(activations, -gradients)


def _first_component(features):
    """The first principal component of positions × channels by NumPy's SVD; the sign is arbitrary."""
    x = features.reshape(len(features), -1).T
    _, _, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (x @ axes[0]).reshape(features.shape[1:])


def _correlating(component, features):
    reference = features.sum(axis=0)
    product = ((component - component.mean()) * (reference - reference.mean())).sum()
    return component if product >= 0 else -component


def eigencam(activations, _gradients):
    """Muhammad & Yeasin: the first principal component; its sign correlates with the sum over channels."""
    return _correlating(_first_component(activations), activations)


def eigengradcam(activations, gradients):
    """The first principal component of G·A, with the sign as in Eigen-CAM."""
    return _correlating(_first_component(activations * gradients), activations * gradients)


def segeigencam(activations, gradients):
    """The first principal component of |G|·A; the value of largest magnitude is positive."""
    component = _first_component(activations * np.abs(gradients))
    return -component if abs(component.min()) > abs(component.max()) else component


def kpcacam(activations, _gradients):
    """Karmani et al.: kernel principal component analysis with a sigmoid kernel, entry by entry."""
    channels, height, width = activations.shape
    x = activations.reshape(channels, -1).T
    x = x - x.mean(axis=0)
    points = len(x)
    kernel = np.array([[np.tanh(np.dot(x[i], x[j]) / channels + 1) for j in range(points)] for i in range(points)])
    ones = np.full((points, points), 1 / points)
    kernel = kernel - ones @ kernel - kernel @ ones + ones @ kernel @ ones
    values, vectors = np.linalg.eigh(kernel)
    component = vectors[:, -1] * np.sqrt(max(0.0, values[-1]))
    if component[np.abs(component).argmax()] < 0:
        component = -component
    return component.reshape(height, width)


def fem(activations, _gradients):
    """Fuad et al. with k = 2: binary maps weighted by the channels' means."""
    result = np.zeros(activations.shape[1:])
    for channel in activations:
        bound = channel.mean() + 2 * channel.std()
        result += channel.mean() * (channel >= bound)
    return result


REFERENCES = {
    "gradcam": gradcam,
    "hirescam": hirescam,
    "gradcamelementwise": gradcamelementwise,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "layercam": layercam,
    "counterfactual": counterfactual,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
    "segeigencam": segeigencam,
    "kpcacam": kpcacam,
    "fem": fem,
}
