"""How far maps lie apart, and in what precision the device multiplies."""

from __future__ import annotations

import warnings

import torch


def tensorfloat32(convolutions, products):
    """Whether convolutions use it, and how precise matrix products are: "highest", or "high" for TensorFloat-32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a newer way to say so, in some versions
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def apart(actual, expected):
    """‖actual − expected‖ / ‖expected‖ over the whole batch, in float64 on the CPU."""
    actual, expected = (tensor.detach().cpu().double() for tensor in (actual, expected))
    assert actual.shape == expected.shape
    length = float(expected.norm())
    return float((actual - expected).norm()) / length if length else float(actual.norm())


def alike(actual, expected, *, signed=True):
    """The least correlation of two maps of the same image, (B, …) each, or of its absolute value."""
    one, other = (tensor.detach().cpu().double().flatten(1) for tensor in (actual, expected))
    one, other = (flat - flat.mean(1, keepdim=True) for flat in (one, other))
    found = torch.nn.functional.cosine_similarity(one, other, dim=1)
    return float((found if signed else found.abs()).min())


def assert_near(actual, expected, tolerance):
    """Maps of two explanations, key by key; ``tolerance`` is one number or looked up by method, "" for the others."""
    assert actual.keys() == expected.keys()
    far = {}
    for key, raw in expected.items():
        bound = tolerance.get(key[0], tolerance[""]) if isinstance(tolerance, dict) else tolerance
        distance = apart(actual[key], raw)
        if not distance <= bound:
            far[key] = f"{distance:.1e}, allowed {bound:.0e}"
    assert not far, far
