"""Pure functions from what a capture saw to a signed map, one per paper; importing this registers them all."""

# isort: off
# In this order methods are listed to users: Grad-CAM and what is like it first, controls last.
from whycam.cam.methods import gradient, activation, masking, ablation, fullgrad, smoothing, pixel, baselines

# isort: on
from whycam.cam.methods.registry import COMBINATORS, METHODS, Method, MethodLike, find_method, method, resolve_methods
from whycam.cam.methods.smoothing import augmented, eigen, noisy
from whycam.cam.passes.trace import LayerTrace

__all__ = [
    "COMBINATORS",
    "METHODS",
    "LayerTrace",
    "Method",
    "MethodLike",
    "ablation",
    "activation",
    "augmented",
    "baselines",
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
