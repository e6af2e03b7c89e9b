"""Each method again, slowly and in float64, straight from its paper: one image, explicit loops, no shared code."""

from __future__ import annotations

import numpy as np
import torch


def activations_and_gradients(model, image, layer, class_index):
    """(C, h, w) float64 activations at ``layer`` and ∂logit/∂activations, by a plain backward through everything.

    ``model`` and ``image`` (C, H, W) are float64.
    """
    seen = {}

    def keep(_module, _inputs, output):
        seen["activations"] = output
        output.retain_grad()
        # What follows may overwrite its input.
        return output.clone()

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(image[None].clone().requires_grad_())
            logits[0, class_index].backward()
    finally:
        handle.remove()
    tensor = seen["activations"]
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


REFERENCES = {"gradcam": gradcam, "hirescam": hirescam}
