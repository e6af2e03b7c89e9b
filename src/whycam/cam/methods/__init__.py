"""Pure functions from what a capture saw to a signed map, one per paper; importing this registers them all."""

from whycam.cam.methods import activation, control, gradient, pixel
from whycam.cam.methods.registry import METHODS, Method, MethodLike, find_method, method, resolve_methods
from whycam.cam.views import LayerTrace

__all__ = [
    "METHODS",
    "LayerTrace",
    "Method",
    "MethodLike",
    "activation",
    "control",
    "find_method",
    "gradient",
    "method",
    "pixel",
    "resolve_methods",
]
