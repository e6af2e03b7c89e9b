"""Pure functions from what a capture saw to a signed map, one per paper; importing this registers them all."""

from whycam.cam.methods import ablation, activation, control, fullgrad, gradient, masking, pixel, smoothing
from whycam.cam.methods.registry import COMBINATORS, METHODS, Method, MethodLike, find_method, method, resolve_methods
from whycam.cam.methods.smoothing import augmented, eigen, noisy
from whycam.cam.views import LayerTrace

__all__ = [
    "COMBINATORS",
    "METHODS",
    "LayerTrace",
    "Method",
    "MethodLike",
    "ablation",
    "activation",
    "augmented",
    "control",
    "eigen",
    "find_method",
    "fullgrad",
    "gradient",
    "masking",
    "method",
    "noisy",
    "pixel",
    "resolve_methods",
    "smoothing",
]
