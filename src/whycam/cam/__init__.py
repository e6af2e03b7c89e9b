"""The core of whycam: capture activations and gradients, and derive the maps of all methods from them."""

from whycam._lazy import lazy_names
from whycam.cam.explain import Explainer, explain
from whycam.cam.explanation import Explanation, load_explanation
from whycam.cam.factorize import Factorization, factorize
from whycam.cam.inspect import default_layer, inspect_layers
from whycam.cam.methods import METHODS, LayerTrace, Method, method, resolve_methods
from whycam.cam.network.layers import Layer, resolve_layer, resolve_layers
from whycam.cam.network.layout import Layout
from whycam.cam.passes.capture import Trace, capture
from whycam.cam.targets.classification import ClassScore, Finer, LogProbability, Margin, Predicted, Probability, ReST
from whycam.cam.targets.detection import Boxes, Detections, detections
from whycam.cam.targets.outputs import Binary, Output, Segmentation, Similarity, WholeOutput

__getattr__ = lazy_names(
    __name__,
    moved={
        "Factorisation": "whycam.cam:Factorization",
        "factorise": "whycam.cam:factorize",
        "survey": "whycam.cam:inspect_layers",
    },
)

__all__ = [
    "METHODS", "Binary", "Boxes", "ClassScore", "Detections", "Explainer", "Explanation", "Factorization", "Finer",
    "Layer", "LayerTrace", "Layout", "LogProbability", "Margin", "Method", "Output", "Predicted", "Probability",
    "ReST", "Segmentation", "Similarity", "Trace", "WholeOutput", "capture", "default_layer", "detections",
    "explain", "factorize", "inspect_layers", "load_explanation", "method", "resolve_layer", "resolve_layers",
    "resolve_methods",
]  # fmt: skip
