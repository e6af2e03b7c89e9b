"""Combinators: a method's map averaged over augmented or noisy images, or the principal component of its terms.

Each takes a method or its name and returns a new method, which can be used like any other. Its name is
``"augmented(gradcam)"``, ``"noisy(layercam, n=4, sigma=0.2)"`` or ``"eigen(gradcam)"``.

``augmented`` and ``noisy`` capture perturbed images and apply the method to each trace. A method that runs the network
again does so for every perturbed image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whycam.cam.methods._perturbed_batches import Noise, batched_copies, mean
from whycam.cam.methods.activation import principal_map
from whycam.cam.methods.registry import Method, MethodLike, combinator, find_method
from whycam.cam.passes.trace import LayerTrace
from whycam.errors import WhycamError
from whycam.options import Count, Deviation

Traces = LayerTrace | Sequence[LayerTrace]

# mirrored → factors; the sixth variant is the batch itself, which is captured already.
_VARIANTS = {False: (0.9, 1.1), True: (0.9, 1.0, 1.1)}


@combinator
def augmented(method: MethodLike) -> Method:
    """The mean map over six variants of the image: the image and its mirror image, each times 0.9, 1 and 1.1.

    These are the variants of pytorch-grad-cam's ``aug_smooth``: the factors multiply the normalized image, and the last
    axis is mirrored. Here raw maps are averaged, so the result is signed and in the method's own unit; pytorch-grad-cam
    averages maps after a ReLU and min-max scaling. All variants are explained for the class that is predicted for the
    unperturbed image. A target that depends on positions (boxes, a segmentation mask) is mirrored with the image.

    Raises:
        WhycamError: the method reads the images alone.
    """
    inner = _of_network("augmented", method)
    return Method(
        name=f"augmented({inner.name})",
        title=f"{inner.title}, augmented",
        summary=f"{inner.title} averaged over mirrored, darker and brighter copies of the image.",
        paper=inner.paper,
        function=_Augmented(inner),
        needs=inner.needs | {"reruns"},
        scope=inner.scope,
        retarget=inner.retarget,
    )


@combinator
def noisy(method: MethodLike, n: Count = 8, sigma: Deviation = 0.1) -> Method:
    """The mean map over n noisy copies of the image (Gaussian, σ in the network's input units).

    As SmoothGrad does with gradients (Smilkov et al., 2017, arXiv:1706.03825). All images get the same n noise fields.

    Raises:
        WhycamError: the method reads the images alone, or an option has a wrong value.
    """
    inner = _of_network("noisy", method)
    return Method(
        name=f"noisy({inner.name}, n={n}, sigma={sigma})",
        title=f"{inner.title}, noisy",
        summary=f"{inner.title} averaged over {n} noisy copies of the image.",
        paper=inner.paper,
        function=_Noisy(inner, n, sigma),
        needs=inner.needs | {"reruns"},
        scope=inner.scope,
        retarget=inner.retarget,
    )


@combinator
def eigen(method: MethodLike) -> Method:
    """The first principal component of the method's terms, one per channel, instead of their sum.

    This is pytorch-grad-cam's ``eigen_smooth`` with a fixed sign: the component correlates positively with the method's
    own map. The method's map has to be a sum with one term per channel. Some methods return their terms (Score-CAM,
    Ablation-CAM and similar ones). For other methods that do not run the network again, it is checked numerically
    whether each term depends on its own channel alone.

    Raises:
        WhycamError: the method's map is no such sum.
    """
    inner = method if isinstance(method, Method) else find_method(method)
    if isinstance(inner.function, _Augmented | _Noisy):
        raise WhycamError(
            f"eigen separates the channels of one image, and {inner.title} is a mean over several images: smooth the "
            f"component instead, {inner.name.partition('(')[0]}(eigen({inner.function.inner.name}))"
        )
    if inner.scope != "layer" or ("reruns" in inner.needs and not inner.per_channel):
        raise _no_terms(inner)
    return Method(
        name=f"eigen({inner.name})",
        title=f"{inner.title}, eigen",
        summary=f"The first principal component of {inner.title}'s channels.",
        paper=inner.paper,
        function=_Eigen(inner),
        needs=inner.needs,
        scope=inner.scope,
        retarget=inner.retarget,
    )


def _of_network(combinator_name: str, method: MethodLike) -> Method:
    """The method, if its map depends on the network."""
    inner = method if isinstance(method, Method) else find_method(method)
    if inner.scope == "input" and not inner.needs:
        raise WhycamError(f"{combinator_name} needs a method that uses the network; {inner.title} reads images alone")
    return inner


@dataclass(frozen=True)
class _Augmented:
    inner: Method

    def __call__(self, traces: Traces) -> Tensor:
        return mean(self._maps(traces))

    def _maps(self, traces: Traces) -> Iterator[Tensor]:
        yield self.inner(traces)
        for mirrored, factors in _VARIANTS.items():

            def vary(
                images: Tensor, index: int, mirrored: bool = mirrored, factors: Sequence[float] = factors
            ) -> Tensor:
                return factors[index] * (images.flip(-1) if mirrored else images)

            key = "mirrored" if mirrored else "scaled"
            maps = _over_copies(self.inner, traces, key, len(factors), vary, mirror=mirrored)
            yield from (raw.flip(-1) if mirrored else raw for raw in maps)


@dataclass(frozen=True)
class _Noisy:
    inner: Method
    n: int
    sigma: float

    def __call__(self, traces: Traces) -> Tensor:
        network = _first(traces).network
        key = f"noisy n={self.n} sigma={self.sigma}"
        noise = Noise(network.generator(key), self.n, network.images.shape[1:], dtype=torch.float64)

        def vary(images: Tensor, index: int) -> Tensor:
            return images + (self.sigma * noise[index]).to(images)

        return mean(_over_copies(self.inner, traces, key, self.n, vary))


@dataclass(frozen=True)
class _Eigen:
    inner: Method

    def __call__(self, trace: LayerTrace) -> Tensor:
        return principal_map(channel_terms(self.inner, trace))


def channel_terms(method: Method, trace: LayerTrace) -> Tensor:
    """The term that each channel adds to the method's map, (B, C, …).

    If the method does not return its terms, it is called with every channel as a separate image.

    Raises:
        WhycamError: the map is not the sum of these terms.
    """
    if method.per_channel:
        return method(replace(trace, per_channel=True))
    images, channels = trace.activations.shape[:2]

    def separated(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1)[:, None] if tensor.numel() else tensor

    terms = method(
        trace.with_(
            activations=separated(trace.activations),
            gradients=separated(trace.gradients),
            hvp=separated(trace.hvp),
            logits=trace.logits.repeat_interleave(channels, dim=0),
            scores=trace.scores.repeat_interleave(channels, dim=0),
        )
    )
    terms = _split_copies(terms, images)
    whole = method(trace)
    tolerance = 1e-4 * float(terms.detach().abs().sum(dim=1).nan_to_num().max())
    if not torch.allclose(terms.sum(dim=1), whole, rtol=0, atol=tolerance, equal_nan=True):
        raise _no_terms(method)
    return terms


def _no_terms(method: Method) -> WhycamError:
    return WhycamError(
        f"{method.title} is no sum over channels with independent terms, so eigen cannot separate them: "
        "use Eigen-CAM or EigenGrad-CAM"
    )


def _over_copies(
    inner: Method,
    traces: Traces,
    key: str,
    count: int,
    vary: Callable[[Tensor, int], Tensor],
    *,
    mirror: bool = False,
) -> Iterator[Tensor]:
    """The method's maps of ``count`` perturbed copies of the batch, (B, …) each."""
    for members in batched_copies(count, len(_first(traces).network.images)):

        def perturb(images: Tensor, members: range = members) -> Tensor:
            return torch.cat([vary(images, index) for index in members])

        maps = inner(_trace_perturbed(traces, f"{key} {members.start} to {members.stop}", perturb, mirror=mirror))
        yield from _split_copies(maps, len(members))


def _split_copies(maps: Tensor, count: int) -> Tensor:
    """(k·B, …) → (k, B, …)."""
    return maps.reshape(count, -1, *maps.shape[1:])


def _first(traces: Traces) -> LayerTrace:
    return traces if isinstance(traces, LayerTrace) else traces[0]


def _trace_perturbed(traces: Traces, key: str, perturb: Callable[[Tensor], Tensor], *, mirror: bool) -> Traces:
    def perturbed(trace: LayerTrace) -> LayerTrace:
        return trace.network.trace_perturbed(key, perturb, trace.layer, trace.target, mirror=mirror)

    return perturbed(traces) if isinstance(traces, LayerTrace) else [perturbed(trace) for trace in traces]
