"""The core: capture → method → map. Knows nothing of CIFAR-10, files or reports."""

from whycam.cam.capture import Trace, capture
from whycam.cam.explain import Explainer, explain
from whycam.cam.explanation import Explanation, load_explanation
from whycam.cam.factorise import Factorisation, factorise
from whycam.cam.layers import Layer, resolve_layer, resolve_layers
from whycam.cam.layout import Layout
from whycam.cam.methods import METHODS, LayerTrace, Method, method, resolve_methods
from whycam.cam.targets import ClassScore, Margin, Predicted, Probability

__all__ = [
    "METHODS",
    "ClassScore",
    "Explainer",
    "Explanation",
    "Factorisation",
    "Layer",
    "LayerTrace",
    "Layout",
    "Margin",
    "Method",
    "Predicted",
    "Probability",
    "Trace",
    "capture",
    "explain",
    "factorise",
    "load_explanation",
    "method",
    "resolve_layer",
    "resolve_layers",
    "resolve_methods",
]
