"""FullGrad: the gradients of the input and of every bias (Srinivas & Fleuret, 2019, arXiv:1905.00780).

A network of affine layers, ReLUs and poolings is affine around every image, so its score is exactly
Σ input · ∂score/∂input + Σ bias · ∂score/∂bias. Biases are those of convolutions and linear layers, and BatchNorm's
β − γμ/√(var + ε). Other normalizations subtract and divide by values that depend on the image: their β counts as a
bias, but the sum then differs from the score. Biases of functions outside a module (``F.conv2d``) are not included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whycam.cam.maps import resize
from whycam.cam.methods.registry import method
from whycam.cam.network.inputs import Inputs, InputsLike
from whycam.cam.network.layout import detect_layout
from whycam.cam.passes.environment import explaining
from whycam.cam.passes.plan import Plan
from whycam.cam.passes.runner import PassRunner
from whycam.cam.passes.trace import LayerTrace
from whycam.cam.targets.class_names import ClassNames
from whycam.cam.targets.classification import TargetLike
from whycam.cam.targets.resolve import resolve_target
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, refuse_opaque_parts, unwrapped

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAST_AXIS = (nn.Linear, nn.LayerNorm)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias that ``module`` adds to each channel, (C,); None if it has none."""
    bias = getattr(module, "bias", None)
    if isinstance(module, _BATCH_NORMS) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        shift = -scale * module.running_mean
        return shift if bias is None else shift + bias.detach()
    if isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS, *_OTHER_NORMS, *_LAST_AXIS)) and isinstance(bias, Tensor):
        return bias.detach() if bias.ndim == 1 else None
    return None


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    """The axis of its output, or of a gradient there, along which ``module`` adds its bias."""
    if not isinstance(module, _LAST_AXIS):
        return 1
    if type(module).forward in (nn.Linear.forward, nn.LayerNorm.forward):
        return output.ndim - 1
    # A subclass with its own forward, such as a LayerNorm for channels-first maps: find the axis from its output.
    channels = len(module.bias)
    axes = [axis for axis in range(1, output.ndim) if output.shape[axis] == channels]
    if len(axes) > 1 and isinstance(module, nn.LayerNorm):
        # The normalization of zeros is zero, so the output for zeros is the bias.
        ramp = torch.arange(1.0, channels + 1).to(module.bias)
        with torch.no_grad():
            biases = functional_call(module, {"bias": ramp}, (module.bias.new_zeros(1, *output.shape[1:]),))
        axes = [axis for axis in axes if bool((biases.movedim(axis, -1) == ramp).all())]
    return axes[0] if len(axes) == 1 else output.ndim - 1


def _biases(model: nn.Module) -> dict[nn.Module, Tensor]:
    refuse_opaque_parts(model, "FullGrad needs every bias")
    biases = {module: bias_of(module) for module in model.modules()}
    return {module: bias for module, bias in biases.items() if bias is not None}


@method("FullGrad", paper="Srinivas & Fleuret, 2019, arXiv:1905.00780", needs=("reruns", "outputs"), scope="input")
def fullgrad(trace: LayerTrace) -> Tensor:
    """Input times gradient plus every bias times its gradient: all parts of the score, in absolute value.

    ψ as in the authors' code: the absolute value, min-max scaled per image over all of a layer's channels and
    positions, resized to the image, summed over channels. Here channels are summed before resizing, which is linear.
    Biases without positions (the classifier's) are not in the map; `full_gradients` has them.
    """
    network = trace.network
    biases = _biases(network.model)
    size = trace.activations.shape[2:]
    total = torch.zeros_like(trace.activations[:, 0])

    def report(module: nn.Module, gradient: Tensor) -> None:
        nonlocal total
        if gradient.ndim < 3 or len(gradient) != len(total):
            return
        gradient = at_least_float32(gradient)
        magnitude = gradient.movedim(_channel_axis(module, gradient), 1).abs()
        if magnitude.ndim != len(size) + 2:
            try:
                layout = detect_layout(gradient, size, module)
            except WhycamError:
                return
            magnitude = layout.to_map(gradient).abs()
        # Not in place: the caller may be in inference mode, and this runs outside of it.
        total = total + _psi(magnitude, size, biases[module].to(gradient).abs())

    gradient = network.output_gradients(biases.keys(), trace.target, report)
    magnitude = (at_least_float32(gradient) * trace.activations).abs()
    return total + _psi(magnitude, size)


def _psi(magnitude: Tensor, size: torch.Size, factor: Tensor | None = None) -> Tensor:
    """Σ_c of ``factor_c · magnitude_c``, min-max scaled per image and resized: (B, C, …), (C,) → (B, H, W).

    The product is not computed as a tensor: its extremes and its sum follow from those of each channel.
    """
    positions = tuple(range(2, magnitude.ndim))
    low, high = magnitude.amin(dim=positions), magnitude.amax(dim=positions)
    if factor is None:
        summed = magnitude.sum(dim=1)
    else:
        low, high = low * factor, high * factor
        summed = torch.einsum("bc...,c->b...", magnitude, factor)
    shape = (-1, *[1] * len(positions))
    minimum, maximum = low.amin(dim=1).view(shape), high.amax(dim=1).view(shape)
    scaled = (summed - magnitude.shape[1] * minimum) / torch.where(maximum > minimum, maximum - minimum, 1)
    return resize(scaled, size)


@dataclass(frozen=True)
class FullGradients:
    """The exact decomposition of scores into the contributions of the input and of each bias.

    Attributes:
        scores: (B,).
        input: (B, C, H, W), input times gradient.
        biases: (path of the module, bias times gradient in the shape of the module's output), in order of execution.
    """

    scores: Tensor
    input: Tensor
    biases: tuple[tuple[str, Tensor], ...]

    @property
    def total(self) -> Tensor:
        """(B,) the sum of all contributions, which is the score if the network is piecewise linear."""
        return self.input.flatten(1).sum(dim=1) + sum(
            (part.flatten(1).sum(dim=1) for _, part in self.biases), torch.zeros_like(self.scores)
        )


def full_gradients(model: nn.Module, images: InputsLike, target: TargetLike = None) -> FullGradients:
    """Decompose scores: Σ input · gradient + Σ bias · gradient = score, if the network is piecewise linear.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits; not changed.
        images: (B, C, H, W) float.
        target: the score to decompose. The sum equals the score only if it is linear in the logits (a class, a margin).

    Returns:
        A `FullGradients`.
    """
    network = unwrapped(model)
    plan = Plan(targets={"target": resolve_target(target, ClassNames.of(network))}, keep_input_graph=True)
    paths = {module: path for path, module in network.named_modules()}
    parts: list[tuple[str, Tensor]] = []

    def report(module: nn.Module, gradient: Tensor) -> None:
        bias = biases[module].to(gradient)
        bias = bias.view(-1, *[1] * (gradient.ndim - 1 - _channel_axis(module, gradient)))
        parts.append((paths[module], gradient * bias))

    with explaining(network):
        runner = PassRunner(network, Inputs.of(images).without_inference_tensors(), plan)
        biases = _biases(network)
        gradient = runner.output_gradients(biases.keys(), "target", report)
    return FullGradients(runner.trace.scores["target"], runner.images.detach() * gradient, tuple(reversed(parts)))
