"""`explain` and `Explainer`: capture once, derive every map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from whycam.cam.capture import Trace, capture
from whycam.cam.explanation import Explanation
from whycam.cam.layers import Layer, LayerLike, default_layer, resolve_layers
from whycam.cam.methods.registry import LayerTrace, Method, MethodLike, resolve_methods
from whycam.cam.targets import TargetLike, resolve_targets
from whycam.errors import WhycamError
from whycam.modules import unwrapped

TargetsLike = TargetLike | Mapping[str, TargetLike]


@dataclass
class Explainer:
    """Explains batch after batch with the same model, layers and methods; can be pickled.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the last spatial layer.
        methods: names or method objects.
        targets: what is explained unless a call says otherwise; see `whycam.cam.targets.resolve_targets`.

    Raises:
        WhycamError: on construction, if a layer or method is unknown or the model cannot be looked into.
    """

    model: nn.Module
    layers: Sequence[LayerLike] | LayerLike | None = None
    methods: Sequence[MethodLike] | MethodLike = "gradcam"
    targets: TargetsLike = None
    _network: nn.Module = field(init=False, repr=False)
    _layers: tuple[Layer, ...] | None = field(init=False, repr=False, default=None)
    _methods: tuple[Method, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._network = unwrapped(self.model)
        self._methods = resolve_methods(self.methods)
        if self.layers is not None:
            given = [self.layers] if isinstance(self.layers, str | nn.Module) else self.layers
            self._layers = resolve_layers(self._network, given)

    def __call__(self, images: Tensor, targets: TargetsLike = None) -> Explanation:
        """Explain a batch.

        Args:
            images: (B, C, H, W) float, normalised as the model expects, on the model's device.
            targets: overrides the constructor's.

        Returns:
            The raw maps of all methods, layers and targets.

        Raises:
            WhycamError: the batch does not fit the model, a target does not exist, or a layer has no map.
        """
        _check(images, self._network)
        if self._layers is None:
            self._layers = (default_layer(self._network, images),)
        named = resolve_targets(self.targets if targets is None else targets)
        needs_gradients = any(method.needs_gradients for method in self._methods)
        try:
            trace = capture(self._network, images, self._layers, named, gradients=needs_gradients)
        except RuntimeError as error:
            if (wrong := _channel_mismatch(self._network, images)) is not None:
                raise wrong from error
            raise
        return Explanation(
            maps=derive(trace, self._layers, self._methods, tuple(named)),
            logits=trace.logits,
            scores=trace.scores,
            inputs=images.detach(),
            channels={layer.name: trace.activations[layer.name].shape[1] for layer in self._layers},
        )


def explain(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    methods: Sequence[MethodLike] | MethodLike = "gradcam",
    targets: TargetsLike = None,
) -> Explanation:
    """Explain what ``model`` sees in ``images``: one forward pass, one backward pass per target.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits; afterwards exactly as it was.
        images: (B, C, H, W) float, normalised as the model expects, on the model's device.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the last spatial layer.
        methods: names (``gradcam``, ``hirescam``) or method objects.
        targets: ``None`` (each image's predicted class), an int, (B,) indices, a callable on the logits, a list of
            these (one per image), or a mapping of names to any of these for several targets from one forward pass.

    Returns:
        An `Explanation`.

    Raises:
        WhycamError: one sentence on what does not fit.

    Example:
        >>> import torch, whycam
        >>> model, spec = whycam.load("cifar10-resnet18")
        >>> e = whycam.explain(model, torch.zeros(2, 3, 32, 32), layers=["layer3[-2]", "layer4[-1]"])
        >>> e.map("gradcam", "layer4[-1]").shape
        torch.Size([2, 4, 4])
    """
    return Explainer(model, layers, methods, targets)(images)


def derive(
    trace: Trace, layers: Sequence[Layer], methods: Sequence[Method], targets: Sequence[str]
) -> dict[tuple[str, str, str], Tensor]:
    """Every (method, layer, target) map of one trace, reduced in at least float32."""
    maps: dict[tuple[str, str, str], Tensor] = {}
    for layer in layers:
        activations = _at_least_float32(trace.activations[layer.name])
        if activations.ndim != 4 or activations.shape[-1] * activations.shape[-2] <= 1:
            raise WhycamError(
                f"layer {layer.name!r} has the output shape {tuple(activations.shape)}: a single position, so there "
                "is no map of where; choose an earlier layer"
                if activations.ndim == 4
                else f"layer {layer.name!r} has the output shape {tuple(activations.shape)}; a map needs (B, C, h, w)"
            )
        for target in targets:
            gradients = trace.gradients.get((layer.name, target))
            view = LayerTrace(
                activations=activations,
                gradients=activations.new_empty(0) if gradients is None else _at_least_float32(gradients),
                logits=trace.logits,
                scores=trace.scores[target],
            )
            for method in methods:
                # The sums over channels and positions stay in float32 also under the caller's autocast.
                with torch.no_grad(), torch.autocast(activations.device.type, enabled=False):
                    maps[method.name, layer.name, target] = method(view)
    return maps


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _check(images: Tensor, model: nn.Module) -> None:
    if not isinstance(images, Tensor):
        raise WhycamError(f"images must be a torch tensor (B, C, H, W), got {type(images).__name__}")
    if images.ndim != 4:
        raise WhycamError(
            f"images must have the shape (B, C, H, W), got {tuple(images.shape)}"
            + ("; one image needs a batch axis: images[None]" if images.ndim == 3 else "")
        )
    if not len(images):
        raise WhycamError("the batch of images is empty")
    if not images.is_floating_point():
        raise WhycamError(f"images must be normalised floats, got {images.dtype}: pass spec.preprocess(images)")
    if not bool(images.isfinite().all()):
        count = int((~images.isfinite()).flatten(1).any(dim=1).sum())
        raise WhycamError(f"{count} of {len(images)} images hold NaN or infinite values")
    parameter = next(model.parameters(), None)
    if parameter is None:
        return
    if parameter.device != images.device:
        raise WhycamError(f"the images are on {images.device}, the model on {parameter.device}: move one of them")
    mixed = torch.is_autocast_enabled(images.device.type)
    if parameter.dtype != images.dtype and not mixed:
        raise WhycamError(
            f"the images are {images.dtype}, the model {parameter.dtype}: convert one, for example "
            f"images.to({parameter.dtype})"
        )


def _channel_mismatch(model: nn.Module, images: Tensor) -> WhycamError | None:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == images.shape[1]:
        return None
    return WhycamError(
        f"the images have {images.shape[1]} channel(s), the model's first convolution takes {first.in_channels}"
    )
