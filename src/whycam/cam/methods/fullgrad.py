"""FullGrad: the input's gradient and that of every bias (Srinivas & Fleuret, 2019, arXiv:1905.00780).

A network of affine layers, ReLUs and poolings is affine around every image, so its score is exactly
Σ input · ∂score/∂input + Σ bias · ∂score/∂bias. Biases are those of convolutions and linear layers, and BatchNorm's
β − γμ/√(var + ε). What other normalizations subtract and divide by depends on the image: their β counts as a bias, but
then the sum is no longer the score. Functions called outside a module (``F.conv2d`` with a bias) cannot be seen.
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
    """What ``module`` adds to each channel, (C,); None where it adds nothing."""
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
    """Along which axis of its output, or of a gradient there, ``module`` adds its bias."""
    if not isinstance(module, _LAST_AXIS):
        return 1
    if type(module).forward in (nn.Linear.forward, nn.LayerNorm.forward):
        return output.ndim - 1
    # A forward of its own, that of a LayerNorm of channels-first maps say: its output tells.
    channels = len(module.bias)
    fitting = [axis for axis in range(1, output.ndim) if output.shape[axis] == channels]
    if len(fitting) > 1 and isinstance(module, nn.LayerNorm):
        # Zeros normalized are zeros, so what comes out is the bias where it is added.
        ramp = torch.arange(1.0, channels + 1).to(module.bias)
        with torch.no_grad():
            seen = functional_call(module, {"bias": ramp}, (module.bias.new_zeros(1, *output.shape[1:]),))
        fitting = [axis for axis in fitting if bool((seen.movedim(axis, -1) == ramp).all())]
    return fitting[0] if len(fitting) == 1 else output.ndim - 1


def _biases(model: nn.Module) -> dict[nn.Module, Tensor]:
    refuse_opaque_parts(model, "FullGrad needs every bias")
    found = {module: bias_of(module) for module in model.modules()}
    return {module: bias for module, bias in found.items() if bias is not None}


@method("FullGrad", paper="Srinivas & Fleuret, 2019, arXiv:1905.00780", needs=("reruns", "outputs"), scope="input")
def fullgrad(trace: LayerTrace) -> Tensor:
    """Input times gradient plus every bias times its gradient: all that the score consists of, in absolute value.

    ψ as in the authors' code: the absolute value, min-max scaled per image over all of a layer's channels and
    positions, resized to the image, summed over channels. Here channels are summed before resizing, which is linear.
    Biases without a position, the classifier's, have no place in the map; `full_gradients` has them.
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
        # Not in place: this runs outside the inference mode that the caller may be in.
        total = total + _psi(magnitude, size, biases[module].to(gradient).abs())

    gradient = network.output_gradients(biases.keys(), trace.target, report)
    magnitude = (at_least_float32(gradient) * trace.activations).abs()
    return total + _psi(magnitude, size)


def _psi(magnitude: Tensor, size: torch.Size, factor: Tensor | None = None) -> Tensor:
    """Σ_c of ``factor_c · magnitude``, min-max scaled per image, resized: (B, C, …), (C,) → (B, H, W).

    Computed without making the product: its extremes and its sum follow from the channels' own.
    """
    positions = tuple(range(2, magnitude.ndim))
    low, high = magnitude.amin(dim=positions), magnitude.amax(dim=positions)
    if factor is None:
        summed = magnitude.sum(dim=1)
    else:
        low, high = low * factor, high * factor
        summed = torch.einsum("bc...,c->b...", magnitude, factor)
    shape = (-1, *[1] * len(positions))
    least, most = low.amin(dim=1).view(shape), high.amax(dim=1).view(shape)
    scaled = (summed - magnitude.shape[1] * least) / torch.where(most > least, most - least, 1)
    return resize(scaled, size)


@dataclass(frozen=True)
class FullGradients:
    """The exact decomposition of a score into what the input and each bias contribute.

    Attributes:
        scores: (B,).
        input: (B, C, H, W), input times gradient.
        biases: (module's path, (B, …) bias times gradient as the module's output), in order of execution.
    """

    scores: Tensor
    input: Tensor
    biases: tuple[tuple[str, Tensor], ...]

    @property
    def total(self) -> Tensor:
        """(B,) the sum of all contributions; the score itself for a piecewise linear network."""
        return self.input.flatten(1).sum(dim=1) + sum(
            (part.flatten(1).sum(dim=1) for _, part in self.biases), torch.zeros_like(self.scores)
        )


def full_gradients(model: nn.Module, images: InputsLike, target: TargetLike = None) -> FullGradients:
    """Take scores apart: Σ input · gradient + Σ bias · gradient = score, where the network is piecewise linear.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits; afterwards exactly as it was.
        images: (B, C, H, W) float.
        target: of one kind for all images; linear in the logits (a class, a margin), or the sum is not the score.

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
