"""The core: capture → method → map. Knows nothing of CIFAR-10, files or reports."""

from whycam.cam.boxes import Boxes, Detections, detections
from whycam.cam.capture import Trace, capture
from whycam.cam.explain import Explainer, explain
from whycam.cam.explanation import Explanation, load_explanation
from whycam.cam.factorise import Factorisation, factorise
from whycam.cam.layers import Layer, resolve_layer, resolve_layers
from whycam.cam.layout import Layout
from whycam.cam.methods import METHODS, LayerTrace, Method, method, resolve_methods
from whycam.cam.other_targets import Binary, Output, Segmentation, Similarity, WholeOutput
from whycam.cam.survey import default_layer, survey
from whycam.cam.targets import ClassScore, Finer, LogProbability, Margin, Predicted, Probability, ReST

__all__ = [
    "METHODS",
    "Binary",
    "Boxes",
    "ClassScore",
    "Detections",
    "Explainer",
    "Explanation",
    "Factorisation",
    "Finer",
    "Layer",
    "LayerTrace",
    "Layout",
    "LogProbability",
    "Margin",
    "Method",
    "Output",
    "Predicted",
    "Probability",
    "ReST",
    "Segmentation",
    "Similarity",
    "Trace",
    "WholeOutput",
    "capture",
    "default_layer",
    "detections",
    "explain",
    "factorise",
    "load_explanation",
    "method",
    "resolve_layer",
    "resolve_layers",
    "resolve_methods",
    "survey",
]
