"""`explain` and `Explainer`: capture once, derive every map."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from whycam.cam.explanation import Explanation
from whycam.cam.inspect import default_layer, explain_missing_gradient
from whycam.cam.methods.registry import INPUT, Method, MethodLike, resolve_methods
from whycam.cam.network.inputs import Inputs, InputsLike
from whycam.cam.network.layers import Layer, LayerLike, resolve_layers
from whycam.cam.network.layout import Layout, check_layout
from whycam.cam.passes.capture import NoGradientError
from whycam.cam.passes.runner import Run
from whycam.cam.passes.trace import LayerTrace
from whycam.cam.targets.class_names import ClassesLike, ClassNames
from whycam.cam.targets.classification import TargetLike
from whycam.cam.targets.resolve import resolve_targets
from whycam.errors import WhycamError
from whycam.nn_utils import instrumented, unwrapped

LayoutsLike = Layout | Mapping[str, Layout] | None
TargetsLike = TargetLike | Mapping[str, TargetLike]


@dataclass
class Explainer:
    """Explains batch after batch with the same model, layers and methods; can be pickled.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the model's own ``cam_layers``, or else the
            last spatial layer.
        methods: names (``gradcam``, ``fem(k=3)``) or method objects.
        targets: what is explained unless a call says otherwise; see `whycam.cam.targets.resolve.resolve_targets`.
        layout: where channels and positions lie in the layers' outputs, for all or by layer name; detected by default.
        seed: of the methods that draw at random.
        differentiable: keep the graph, so that a loss on the maps can be trained with; layer methods only.
        classes: what the classes are called (``spec.classes``), for targets given by name; by default the model's own
            ``class_names`` (which `whycam.load` sets) or ``config.id2label`` (which transformers' models have).

    Raises:
        WhycamError: on construction, if a layer or method is unknown, ``classes`` are no names, or the model cannot be
            looked into.
    """

    model: nn.Module
    layers: Sequence[LayerLike] | LayerLike | None = None
    methods: Sequence[MethodLike] | MethodLike = "gradcam"
    targets: TargetsLike = None
    layout: LayoutsLike = None
    seed: int = 0
    differentiable: bool = False
    classes: ClassesLike | None = None
    _network: nn.Module = field(init=False, repr=False)
    _layers: tuple[Layer, ...] | None = field(init=False, repr=False, default=None)
    _methods: tuple[Method, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._network = unwrapped(self.model)
        self._methods = resolve_methods(self.methods)
        ClassNames.of(self._network, self.classes)  # says now what is wrong with them
        layers = self.layers if self.layers is not None else getattr(self._network, "cam_layers", None)
        if layers is not None:
            self._layers = resolve_layers(self.model, layers)
        for layout in self.layout.values() if isinstance(self.layout, Mapping) else [self.layout]:
            check_layout(layout)
        if self.differentiable:
            for method in self._methods:
                if method.scope == "input" or "reruns" in method.needs:
                    raise WhycamError(f"{method.title} runs the network again and has no differentiable form")

    def __call__(self, images: InputsLike, targets: TargetsLike = None) -> Explanation:
        """Explain a batch.

        Args:
            images: (B, C, H, W) float, normalized as the model expects, on the model's device; or a tuple or mapping
                of the model's arguments, the first image-like tensor of which is what is explained.
            targets: overrides the constructor's.

        Returns:
            The raw maps of all methods, layers and targets.

        Raises:
            WhycamError: the batch does not fit the model, a target does not exist, or a layer has no map.
        """
        # Under the caller's inference_mode nothing can be made that autograd takes.
        with torch.inference_mode(False), instrumented(self._network):
            try:
                return self._explained(Inputs.of(images).ordinary(), targets)
            except RuntimeError as error:
                if "Inference tensors" not in str(error):
                    raise
                raise WhycamError(
                    "the model or a target holds a tensor, no parameter, buffer or field, that was made under "
                    "torch.inference_mode, of which autograd takes none: make it outside, or clone it there"
                ) from error

    def _explained(self, inputs: Inputs, targets: TargetsLike) -> Explanation:
        _check(inputs.images, self._network)
        layers = self._layers
        if layers is None and all(method.scope == "input" for method in self._methods):
            layers = ()
        elif layers is None:
            with _channels_named(inputs.images):
                layers = self._layers = (default_layer(self._network, inputs),)
        classes = ClassNames.of(self._network, self.classes)
        named = resolve_targets(self.targets if targets is None else targets, classes)
        layouts = {"": self.layout} if isinstance(self.layout, Layout) else self.layout
        for name in layouts or ():
            if name and layers and name not in (names := [layer.name for layer in layers]):
                raise WhycamError(f"a layout is given for {name!r}, which is none of the layers: {', '.join(names)}")
        try:
            with _channels_named(inputs.images):
                run = Run(self._network, inputs, layers, named, self._methods, layouts=layouts, seed=self.seed,
                          differentiable=self.differentiable)  # fmt: skip
        except NoGradientError as error:
            raise explain_missing_gradient(self._network, inputs, error) from None
        if run.trace.logits.ndim == 2 and not any(map(run.reads_more, named)):
            classes.check(run.trace.logits.shape[1])
        return Explanation(
            maps=derive(run, self._methods),
            logits=run.trace.logits,
            scores={name: run.trace.scores[name] for name in named},
            inputs=inputs.images.detach(),
            channels={
                layer.name: run.layout(layer.name).to_map(run.trace.activations[layer.name]).shape[1]
                for layer in layers
            },
        )


def explain(
    model: nn.Module,
    images: InputsLike,
    layers: Sequence[LayerLike] | LayerLike | None = None,
    methods: Sequence[MethodLike] | MethodLike = "gradcam",
    targets: TargetsLike = None,
    *,
    layout: LayoutsLike = None,
    seed: int = 0,
    differentiable: bool = False,
    classes: ClassesLike | None = None,
) -> Explanation:
    """Explain what ``model`` sees in ``images``: one forward pass, one backward pass per target.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits; afterwards as it was, but for what its own
            ``forward`` writes in eval mode.
        images: (B, C, H, W) float, normalized as the model expects, on the model's device.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the last spatial layer.
        methods: names (``gradcam``, ``hirescam``) or method objects.
        targets: ``None`` (each image's predicted class), a class's index or name, (B,) of either, a callable on the
            logits, a list of these (one per image), or a mapping of names to any of these for several targets from one
            forward pass.
        layout: where channels and positions lie in the layers' outputs; detected by default.
        seed: of the methods that draw at random.
        differentiable: keep the graph, so that a loss on the maps can be trained with.
        classes: what the classes are called, where the model does not say so itself; see `Explainer`.

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
    return Explainer(model, layers, methods, targets, layout, seed, differentiable, classes)(images)


def derive(run: Run, methods: Sequence[Method]) -> dict[tuple[str, str, str], Tensor]:
    """Every (method, layer, target) map of one run, reduced in at least float32.

    A method that joins all layers is found under their names joined by "+", one of the images alone under "input".
    """
    maps: dict[tuple[str, str, str], Tensor] = {}
    names = [layer.name for layer in run.layers]
    if any(method.scope != "input" for method in methods):
        for name in names:
            _check_positions(name, run.layout(name).to_map(run.trace.activations[name]).shape)
    device = run.images.device.type
    # The sums over channels and positions stay in float32 also under the caller's autocast.
    with torch.set_grad_enabled(run.differentiable), torch.autocast(device, enabled=False):
        for name in names:
            for target in run.names:
                for method in methods:
                    if method.scope == "layer":
                        maps[method.name, name, target] = _map_of(method, run.view(name, target, method))
        for target in run.names:
            for method in methods:
                if method.scope == "layers":
                    views = [run.view(name, target, method) for name in names]
                    maps[method.name, "+".join(names), target] = _map_of(method, views)
                elif method.scope == "input":
                    maps[method.name, INPUT, target] = _map_of(method, run.input_view(target, method))
    return maps


def _map_of(method: Method, trace: LayerTrace | Sequence[LayerTrace]) -> Tensor:
    views = [trace] if isinstance(trace, LayerTrace) else trace
    seen = views[0].activations
    with _forbid_inplace(method, views):
        made: object = method(trace)
    if isinstance(made, Tensor) and made.ndim == seen.ndim - 1 and len(made) == len(seen):
        return made
    got = f"a {tuple(made.shape)} tensor" if isinstance(made, Tensor) else type(made).__name__
    raise WhycamError(
        f"method {method.name!r} returns {got}; a map has one value for each image and position, the shape "
        f"{(len(seen), *seen.shape[2:])} say"
    )


@contextmanager
def _forbid_inplace(method: Method, views: Sequence[LayerTrace]) -> Iterator[None]:
    """Refuse a method that changes what the others read as well."""
    read = ("activations", "gradients", "curvature", "logits", "scores")
    tensors = [(name, tensor, tensor._version) for view in views for name in read for tensor in [getattr(view, name)]]
    yield
    for name, tensor, version in tensors:
        if tensor._version != version:
            raise WhycamError(
                f"method {method.name!r} changes the {name} in place, which all methods read: it has to copy them first"
            )


def _check_positions(name: str, shape: torch.Size) -> None:
    if len(shape) < 3:
        raise WhycamError(f"layer {name!r} has the output shape {tuple(shape)}; a map needs (B, C, h, w)")
    if shape[2:].numel() <= 1:
        raise WhycamError(
            f"layer {name!r} has the output shape {tuple(shape)}: a single position, so there is no map of where; "
            "choose an earlier layer"
        )


def _check(images: Tensor, model: nn.Module) -> None:
    takes: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    # By isinstance: parametrized convolutions have types of their own. Without any, the network itself decides.
    axes = {count for kind, count in takes.items() if any(isinstance(module, kind) for module in model.modules())}
    if axes and images.ndim not in axes:
        shapes = {3: "(B, C, T)", 4: "(B, C, H, W)", 5: "(B, C, D, H, W)"}
        raise WhycamError(
            f"images must have the shape {' or '.join(shapes[count] for count in sorted(axes))}, "
            f"got {tuple(images.shape)}"
            + ("; one image needs a batch axis: images[None]" if images.ndim + 1 in axes else "")
        )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv3d)), None)
    if first is not None and images.ndim == 5 and images.shape[1] != first.in_channels == images.shape[2]:
        raise WhycamError(
            f"the video {tuple(images.shape)} has its frames before its channels: wrap the model in a module that "
            "passes on x.transpose(1, 2), and give that videos of the shape (B, C, T, H, W)"
        )
    if not len(images):
        raise WhycamError("the batch of images is empty")
    if not images.is_floating_point():
        raise WhycamError(f"images must be normalized floats, got {images.dtype}: pass spec.preprocess(images)")
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


@contextmanager
def _channels_named(images: Tensor) -> Iterator[None]:
    """Say it in our words where a convolution is given the images themselves and takes another number of channels."""
    try:
        yield
    except RuntimeError as error:
        said = re.search(r"expected input\[([\d, ]+)\] to have (\d+) channels", str(error))
        if said is None or tuple(map(int, said[1].split(",")))[1:] != tuple(images.shape[1:]):
            raise
        raise WhycamError(
            f"the images have {images.shape[1]} channel(s), the model's first convolution takes {said[2]}"
        ) from error
