"""Methods made of methods: a map averaged over augmented or noisy images, or the principal component of its parts.

Each takes a method or its name and returns a method, which goes wherever one goes; as a string it is written
``"augmented(gradcam)"``, ``"noisy(layercam, n=4, sigma=0.2)"``, ``"eigen(gradcam)"``.

Smoothing captures the altered images like any others and lets the method look at that; a method that runs the network
again does so on the altered images, as many times as there are of them.
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

# mirrored → factors; the sixth variant is the batch itself, which has been captured already.
_VARIANTS = {False: (0.9, 1.1), True: (0.9, 1.0, 1.1)}


@combinator
def augmented(method: MethodLike) -> Method:
    """The mean map over six variants of the image: as it is and mirrored, times 0.9, 1 and 1.1.

    The variants of pytorch-grad-cam's ``aug_smooth``: its factors act on the normalized image, mirroring
    on the last axis. Here raw maps are averaged, so that the result is signed and in the method's own unit; there, maps
    that were each cut at 0 and min-max scaled first. The predicted class is the unaltered image's in all six; a target
    that looks at places (boxes, a segmentation mask) is mirrored with the image.

    Raises:
        WhycamError: the method looks at the images alone.
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

    As SmoothGrad does with gradients (Smilkov et al., 2017, arXiv:1706.03825). All images meet the same n noise fields.

    Raises:
        WhycamError: the method looks at the images alone, or an option is of the wrong kind.
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
    """The first principal component of what the method gives each channel, instead of their sum.

    pytorch-grad-cam's ``eigen_smooth``, with a fixed sign: the one that correlates with the method's own map. For
    methods whose map is a sum with one term per channel: some hand their terms out (Score-CAM, Ablation-CAM and their
    kin); of others that run nothing again it is tried out whether each term depends on its own channel alone.

    Raises:
        WhycamError: the method is of another kind.
    """
    inner = method if isinstance(method, Method) else find_method(method)
    if isinstance(inner.function, _Augmented | _Noisy):
        raise WhycamError(
            f"eigen takes the channels of one image apart, and {inner.title} is a mean over several: smooth the "
            f"component instead, {inner.name.partition('(')[0]}(eigen({inner.function.inner.name}))"
        )
    if inner.scope != "layer" or ("reruns" in inner.needs and not inner.per_channel):
        raise _no_parts(inner)
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


def _of_network(how: str, method: MethodLike) -> Method:
    inner = method if isinstance(method, Method) else find_method(method)
    if inner.scope == "input" and not inner.needs:
        raise WhycamError(f"{how} averages what a network answers to, and {inner.title} looks at the images alone")
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
        return principal_map(channel_parts(self.inner, trace))


def channel_parts(method: Method, trace: LayerTrace) -> Tensor:
    """What each channel adds to the method's map, (B, C, …).

    Where the method does not hand it out, every channel is shown to it as an image of its own.

    Raises:
        WhycamError: the map is not the sum of that.
    """
    if method.per_channel:
        return method(replace(trace, per_channel=True))
    images, channels = trace.activations.shape[:2]

    def apart(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1)[:, None] if tensor.numel() else tensor

    parts = method(
        trace.with_(
            activations=apart(trace.activations),
            gradients=apart(trace.gradients),
            hvp=apart(trace.hvp),
            logits=trace.logits.repeat_interleave(channels, dim=0),
            scores=trace.scores.repeat_interleave(channels, dim=0),
        )
    )
    parts = _copies(parts, images)
    whole = method(trace)
    tolerance = 1e-4 * float(parts.detach().abs().sum(dim=1).nan_to_num().max())
    if not torch.allclose(parts.sum(dim=1), whole, rtol=0, atol=tolerance, equal_nan=True):
        raise _no_parts(method)
    return parts


def _no_parts(method: Method) -> WhycamError:
    return WhycamError(
        f"{method.title} is no sum over channels that each count on their own, so eigen cannot take it apart: "
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
    """The method's maps of ``count`` altered copies of the batch, (B, …) each."""
    for members in batched_copies(count, len(_first(traces).network.images)):

        def make(images: Tensor, members: range = members) -> Tensor:
            return torch.cat([vary(images, index) for index in members])

        maps = inner(_again(traces, f"{key} {members.start} to {members.stop}", make, mirror=mirror))
        yield from _copies(maps, len(members))


def _copies(maps: Tensor, count: int) -> Tensor:
    """(k·B, …) → (k, B, …)."""
    return maps.reshape(count, -1, *maps.shape[1:])


def _first(traces: Traces) -> LayerTrace:
    return traces if isinstance(traces, LayerTrace) else traces[0]


def _again(traces: Traces, key: str, make: Callable[[Tensor], Tensor], *, mirror: bool) -> Traces:
    def view(trace: LayerTrace) -> LayerTrace:
        return trace.network.trace_perturbed(key, make, trace.layer, trace.target, mirror=mirror)

    return view(traces) if isinstance(traces, LayerTrace) else [view(trace) for trace in traces]
