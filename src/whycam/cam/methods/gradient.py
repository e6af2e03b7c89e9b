"""Methods that weight activations by gradients. A, G: (B, C, …positions); maps are signed, (B, …positions).

Σ_c is over channels, Σ_p and mean_p over positions. Each function is its paper's formula without the final ReLU, which
is a display step. If a method is positive by construction, its ReLU is part of the formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from whycam.cam.maps import resize, to_unit
from whycam.cam.methods._perturbed_batches import Noise, batched_copies
from whycam.cam.methods.registry import method
from whycam.cam.network.head import pooled_linear_head
from whycam.cam.passes.trace import LayerTrace
from whycam.cam.targets.classification import ClassScore, Finer, Predicted, ReST, Target
from whycam.errors import WhycamError
from whycam.options import Count, Deviation


def weighted(activations: Tensor, weights: Tensor) -> Tensor:
    """Σ_c w_c · A_c: (B, C, …), (B, C) → (B, …)."""
    return torch.einsum("bc...,bc->b...", activations, weights)


def over_positions(tensor: Tensor) -> Tensor:
    """Σ_p: (B, C, …) → (B, C)."""
    return tensor.flatten(2).sum(dim=2)


@method("Grad-CAM", paper="Selvaraju et al., 2017, arXiv:1610.02391")
def gradcam(trace: LayerTrace) -> Tensor:
    """Activations weighted by each channel's mean gradient: Σ_c mean_p(G_c) · A_c."""
    return weighted(trace.activations, trace.gradients.flatten(2).mean(dim=2))


@method("HiResCAM", paper="Draelos & Carin, 2020, arXiv:2011.08891")
def hirescam(trace: LayerTrace) -> Tensor:
    """Activations times gradients, position by position: Σ_c G_c · A_c; sums to what the layer contributes."""
    return (trace.gradients * trace.activations).sum(dim=1)


@method("Grad-CAM element-wise", paper="Gildenblat et al., pytorch-grad-cam, 2021")
def gradcamelementwise(trace: LayerTrace) -> Tensor:
    """HiResCAM with each channel's negative evidence set to 0 first: Σ_c relu(G_c · A_c)."""
    return (trace.gradients * trace.activations).relu().sum(dim=1)


@method("Grad-CAM++", paper="Chattopadhay et al., 2018, arXiv:1710.11063")
def gradcam_plus_plus(trace: LayerTrace) -> Tensor:
    """Grad-CAM with positions weighted by higher derivatives of exp(score): w_c = Σ_p α · relu(G).

    α = G² / (2G² + G³ · Σ_p A) = 1 / (2 + G · Σ_p A), the paper's formula for the exponential of a score; its common
    factor exp(score), a positive scale per image, is left out. α is 0 where its denominator is 0.
    """
    denominator = trace.gradients * append_axes(over_positions(trace.activations), trace.gradients) + 2
    terms = trace.gradients.relu() / torch.where(denominator != 0, denominator, torch.inf)
    return weighted(trace.activations, over_positions(terms))


def append_axes(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B, C) to (B, C, 1, …, 1), with as many axes as ``like`` (B, C, …)."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


@method("XGrad-CAM", paper="Fu et al., 2020, arXiv:2008.02312")
def xgradcam(trace: LayerTrace) -> Tensor:
    """Each channel's gradient averaged where the channel is active: w_c = Σ_p G·A / Σ_p A.

    A channel whose activations sum to 0 (possible before a ReLU) has no such mean: its weight is 0.
    """
    total, magnitude = over_positions(trace.activations), over_positions(trace.activations.abs())
    cancels = total.abs() <= 1e-6 * magnitude
    mean = over_positions(trace.gradients * trace.activations) / torch.where(cancels, 1, total)
    return weighted(trace.activations, torch.where(cancels, 0, mean))


@method("LayerCAM", paper="Jiang et al., 2021, IEEE TIP 30:5875")
def layercam(trace: LayerTrace) -> Tensor:
    """Activations weighted by their own positive gradients: Σ_c relu(G_c) · A_c; shows no evidence against."""
    return (trace.gradients.relu() * trace.activations).sum(dim=1)


@method("CAM", paper="Zhou et al., 2016, arXiv:1512.04150")
def cam(trace: LayerTrace) -> Tensor:
    """The final linear layer's class weights on the last activations: Σ_c W[k,c] · A_c; needs mean pool + linear.

    For such a layer, Σ map / positions + bias = logit, and Grad-CAM is this map divided by the number of positions.
    """
    network = trace.network
    head = pooled_linear_head(network.model, trace.activations, trace.logits, autocast=network.autocast)
    if head is None:
        raise WhycamError(
            f"CAM needs a layer that is followed by a mean over positions and one linear layer alone; {trace.layer!r} "
            "is not: use Grad-CAM, which is the same map for such layers and works for all others"
        )
    return gradcam.function(trace) * trace.activations[0, 0].numel()


@method("Counterfactual", paper="Selvaraju et al., 2017, arXiv:1610.02391")
def counterfactual(trace: LayerTrace) -> Tensor:
    """Evidence against the target: Grad-CAM of the negated score, −Σ_c mean_p(G_c) · A_c."""
    return -gradcam.function(trace)


def _rest(target: Target) -> Target:
    if isinstance(target, Predicted):
        return _PredictedReST()
    return ReST(target.index) if type(target) is ClassScore else target


class _PredictedReST:
    """The residual softmax of the predicted class."""

    def freeze(self, logits: Tensor) -> ReST:
        return ReST(logits.argmax(dim=1))

    def __call__(self, logits: Tensor) -> Tensor:
        return self.freeze(logits)(logits)


@method("Shapley-CAM", paper="Cai, 2025, arXiv:2501.06261", needs=("gradients", "hvp"), retarget=_rest)
def shapleycam(trace: LayerTrace) -> Tensor:
    """Grad-CAM with a second-order term: w_c = mean_p(G − ½ H·A), for the residual-softmax target."""
    terms = trace.gradients - trace.hvp / 2
    return weighted(trace.activations, terms.flatten(2).mean(dim=2))


def _finer(target: Target) -> Target:
    if isinstance(target, Finer):
        return target
    if isinstance(target, Predicted):
        return Finer()
    if type(target) is ClassScore:
        return Finer(target.index)
    raise WhycamError("Finer-CAM compares a class with those most like it: give a class as the target")


@method("Finer-CAM", paper="Zhang et al., 2025, arXiv:2501.11309", retarget=_finer)
def finercam(trace: LayerTrace) -> Tensor:
    """Grad-CAM of the class minus the three most similar ones: y_c − 0.6 · mean(y_similar)."""
    return gradcam.function(trace)


@method("Refine-CAM", paper="arXiv:2605.14641", scope="layers")
def refinecam(traces: list[LayerTrace]) -> Tensor:
    """The product over all layers of min-max scaled Grad-CAM++ maps, at the resolution of the finest one.

    A position counts only if every layer has evidence there; if one layer has no positive evidence, the map is 0.
    """
    maps = [gradcam_plus_plus.function(trace).relu() for trace in traces]
    size = max((tuple(raw.shape[1:]) for raw in maps), key=math.prod)
    product = torch.ones_like(resize(maps[0], size))
    for raw in maps:
        product = product * resize(to_unit(raw), size)
    return product


@method(
    "Smooth Grad-CAM++",
    paper="Omeiza et al., 2019, arXiv:1908.01224",
    needs=("gradients", "reruns"),
    per_channel=True,
)
def smoothgradcam_plus_plus(trace: LayerTrace, n: Count = 4, sigma: Deviation = 0.3) -> Tensor:
    """Grad-CAM++ with G, G² and G³ averaged over noisy copies of the image (n copies, σ in input units)."""
    network = trace.network
    key = f"noise n={n} sigma={sigma}"
    noise = Noise.from_single_tensor(network.generator(key), n, network.images.shape[1:])  # the same for all images
    totals = [torch.zeros_like(trace.gradients) for _ in range(3)]
    for members in batched_copies(n, len(network.images)):

        def noisy(images: Tensor, members: range = members) -> Tensor:
            return torch.cat([images + sigma * noise[index].to(images) for index in members])

        pass_key = f"{key} {members.start} to {members.stop}"
        gradients = network.trace_perturbed(pass_key, noisy, trace.layer, trace.target).gradients
        gradients = gradients.reshape(len(members), -1, *gradients.shape[1:])
        for total, power in zip(totals, (gradients, gradients**2, gradients**2 * gradients), strict=True):
            total += power.sum(dim=0)
    first, second, third = (total / n for total in totals)
    denominator = 2 * second + append_axes(over_positions(trace.activations), third) * third
    alpha = torch.where(denominator != 0, second / torch.where(denominator != 0, denominator, 1), 0)
    return trace.weighted(over_positions(alpha * first.relu()))
