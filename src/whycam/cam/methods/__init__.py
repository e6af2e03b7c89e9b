"""Pure functions from what a capture saw to a signed map, one per paper; importing this registers them all."""

from whycam.cam.methods import ablation, activation, control, fullgrad, gradient, masking, pixel
from whycam.cam.methods.registry import METHODS, Method, MethodLike, find_method, method, resolve_methods
from whycam.cam.views import LayerTrace

__all__ = [
    "METHODS",
    "LayerTrace",
    "Method",
    "MethodLike",
    "ablation",
    "activation",
    "control",
    "find_method",
    "fullgrad",
    "gradient",
    "masking",
    "method",
    "pixel",
    "resolve_methods",
]
