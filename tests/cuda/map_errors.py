"""Errors between maps, and the precision of products on the device."""

from __future__ import annotations

import warnings

import torch


def set_tensorfloat32(convolutions, products):
    """Set whether convolutions use it, and the precision of matrix products: "highest" or "high" (TensorFloat-32)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch recommend a newer setting
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def relative_error(actual, expected):
    """‖actual − expected‖ / ‖expected‖ over the whole batch, in float64 on the CPU."""
    actual, expected = (tensor.detach().cpu().double() for tensor in (actual, expected))
    assert actual.shape == expected.shape
    length = float(expected.norm())
    return float((actual - expected).norm()) / length if length else float(actual.norm())


def correlation(actual, expected, *, signed=True):
    """The smallest correlation, over the images, of two maps (B, …); without ``signed``, of its absolute value."""
    one, other = (tensor.detach().cpu().double().flatten(1) for tensor in (actual, expected))
    one, other = (flat - flat.mean(1, keepdim=True) for flat in (one, other))
    correlations = torch.nn.functional.cosine_similarity(one, other, dim=1)
    return float((correlations if signed else correlations.abs()).min())


def assert_maps_close(actual, expected, tolerance):
    """Compare the maps of two explanations; ``tolerance`` is one number, or method → number with "" for the others."""
    assert actual.keys() == expected.keys()
    failures = {}
    for key, raw in expected.items():
        bound = tolerance.get(key[0], tolerance[""]) if isinstance(tolerance, dict) else tolerance
        error = relative_error(actual[key], raw)
        if not error <= bound:
            failures[key] = f"{error:.1e}, allowed {bound:.0e}"
    assert not failures, failures
