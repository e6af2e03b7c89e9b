"""Pure functions from what a capture saw to a signed map, one per paper."""

from whycam.cam.methods.gradient import gradcam, hirescam
from whycam.cam.methods.registry import METHODS, LayerTrace, Method, MethodLike, method, resolve_methods

__all__ = ["METHODS", "LayerTrace", "Method", "MethodLike", "gradcam", "hirescam", "method", "resolve_methods"]
