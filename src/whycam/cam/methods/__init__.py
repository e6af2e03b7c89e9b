"""The methods: pure functions from a trace to a signed map, one per paper. Importing this package registers them."""

from whycam._lazy import lazy_names

# isort: off
# Methods are listed to users in this order: Grad-CAM and similar ones first, controls last.
from whycam.cam.methods import gradient, activation, masking, ablation, fullgrad, smoothing, pixel, baselines

# isort: on
from whycam.cam.methods.registry import COMBINATORS, METHODS, Method, MethodLike, find_method, method, resolve_methods
from whycam.cam.methods.smoothing import augmented, eigen, noisy
from whycam.cam.passes.trace import LayerTrace

__getattr__ = lazy_names(__name__, moved={"control": "whycam.cam.methods:baselines"})

__all__ = [
    "COMBINATORS", "METHODS", "LayerTrace", "Method", "MethodLike", "ablation", "activation", "augmented",
    "baselines", "eigen", "find_method", "fullgrad", "gradient", "masking", "method", "noisy", "pixel",
    "resolve_methods", "smoothing",
]  # fmt: skip
