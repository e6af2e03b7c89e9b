"""`explain` and `Explainer`: capture activations and gradients once, then derive every map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import nn

from whycam.cam.derive import derive, method_target
from whycam.cam.explanation import Explanation
from whycam.cam.inspect import default_layer, explain_missing_gradient
from whycam.cam.methods.registry import Method, MethodLike, resolve_methods
from whycam.cam.network.inputs import Inputs, InputsLike, check_images, naming_channel_mismatch
from whycam.cam.network.layers import Layer, LayerLike, resolve_layers
from whycam.cam.network.layout import Layout, check_layout
from whycam.cam.passes.capture import NoGradientError
from whycam.cam.passes.environment import explaining
from whycam.cam.passes.plan import Plan
from whycam.cam.passes.runner import PassRunner
from whycam.cam.targets.class_names import ClassesLike, ClassNames
from whycam.cam.targets.classification import Target, TargetLike
from whycam.cam.targets.resolve import resolve_targets, retargeted
from whycam.errors import WhycamError
from whycam.nn_utils import unwrapped

LayoutsLike = Layout | Mapping[str, Layout] | None
TargetsLike = TargetLike | Mapping[str, TargetLike]


@dataclass
class Explainer:
    """Explains batches with the same model, layers and methods; can be pickled.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the model's own ``cam_layers``, or else the
            last spatial layer.
        methods: names (``gradcam``, ``fem(k=3)``) or method objects.
        targets: what is explained if a call gives no targets; see `whycam.cam.targets.resolve.resolve_targets`.
        layout: the layout of channels and positions in the layers' outputs, one for all or by layer name; detected by
            default.
        seed: for the methods that draw at random.
        differentiable: keep the graph, so that a loss on the maps can be trained with; layer methods only.
        classes: names of the classes (``spec.classes``), for targets given by name; by default the model's own
            ``class_names`` (which `whycam.load` sets) or ``config.id2label`` (which transformers' models have).

    Raises:
        WhycamError: on construction, if a layer or method is unknown, ``classes`` are no names, or the model is a
            TorchScript or exported program.
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
        ClassNames.of(self._network, self.classes)  # raises if they are no names
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
                of the model's arguments, whose first float tensor with three axes or more is the batch of images.
            targets: overrides the constructor's.

        Returns:
            The raw maps of all methods, layers and targets.

        Raises:
            WhycamError: the batch does not fit the model, a target does not exist, or a layer has no map.
        """
        with explaining(self._network):
            return self._explain(Inputs.of(images).without_inference_tensors(), targets)

    def _explain(self, inputs: Inputs, targets: TargetsLike) -> Explanation:
        check_images(inputs.images, self._network)
        classes = ClassNames.of(self._network, self.classes)
        named = resolve_targets(self.targets if targets is None else targets, classes)
        with naming_channel_mismatch(inputs.images):
            layers = self._layers_for(inputs)
            layouts = self._layouts_for(layers)
            plan = plan_passes(layers, named, self._methods, differentiable=self.differentiable)
            try:
                runner = PassRunner(self._network, inputs, plan, layouts=layouts, seed=self.seed)
            except NoGradientError as error:
                raise explain_missing_gradient(self._network, inputs, error) from None
        trace = runner.trace
        if trace.logits.ndim == 2 and not any(map(runner.reads_whole_output, named)):
            classes.check(trace.logits.shape[1])
        return Explanation(
            maps=derive(runner, self._methods, tuple(named)),
            logits=trace.logits,
            scores={name: trace.scores[name] for name in named},
            inputs=inputs.images.detach(),
            channels={layer.name: runner.activation_map(layer.name).shape[1] for layer in layers},
        )

    def _layers_for(self, inputs: Inputs) -> tuple[Layer, ...]:
        """The user's layers, or else the default layer, which is found with the first batch."""
        if self._layers is not None:
            return self._layers
        if all(method.scope == "input" for method in self._methods):
            return ()
        self._layers = (default_layer(self._network, inputs),)
        return self._layers

    def _layouts_for(self, layers: Sequence[Layer]) -> Mapping[str, Layout]:
        """The user's layouts by layer name; the key "" stands for all layers."""
        layouts = {"": self.layout} if isinstance(self.layout, Layout) else self.layout or {}
        names = [layer.name for layer in layers]
        for name in layouts:
            if name and names and name not in names:
                raise WhycamError(f"a layout is given for {name!r}, which is none of the layers: {', '.join(names)}")
        return layouts


def plan_passes(
    layers: Sequence[Layer], targets: Mapping[str, Target], methods: Sequence[Method], *, differentiable: bool = False
) -> Plan:
    """Determine, before the first pass, which passes ``methods`` need.

    Args:
        layers: to explain.
        targets: the user's names → targets.
        methods: to compute.
        differentiable: whether the maps have to be differentiable.
    """
    scored: dict[str, Target] = dict(targets)
    gradients: dict[str, None] = {}
    hvp: dict[str, None] = {}
    for method, name in product(methods, targets):
        target_name = method_target(name, method)
        if method.retarget is not None:
            scored[target_name] = retargeted(targets[name], method.retarget)
        if method.needs_gradients and method.scope != "input":
            gradients[target_name] = None
        if "hvp" in method.needs:
            hvp[target_name] = None
    return Plan(
        layers=tuple(layers),
        targets=scored,
        gradients=tuple(gradients),
        hvp=tuple(hvp),
        keep_input_graph=not differentiable and any("outputs" in method.needs for method in methods),
        differentiable=differentiable,
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
    """Explain the scores of ``model`` for ``images``: one forward pass, and one backward pass per target.

    Args:
        model: any module that takes (B, C, H, W) and returns (B, K) logits; not changed, except by what its own
            ``forward`` stores in eval mode.
        images: (B, C, H, W) float, normalized as the model expects, on the model's device.
        layers: names (``layer3[-2]``, ``layer3.0``) or modules; by default the last spatial layer.
        methods: names (``gradcam``, ``hirescam``) or method objects.
        targets: ``None`` (each image's predicted class), a class's index or name, (B,) of either, a callable on the
            logits, a list of these (one per image), or a mapping of names to any of these for several targets from one
            forward pass.
        layout: the layout of channels and positions in the layers' outputs; detected by default.
        seed: for the methods that draw at random.
        differentiable: keep the graph, so that a loss on the maps can be trained with.
        classes: names of the classes, if the model does not have them itself; see `Explainer`.

    Returns:
        An `Explanation`.

    Raises:
        WhycamError: an argument does not fit the model; the message says which and what to do.

    Example:
        >>> import torch, whycam
        >>> model, spec = whycam.load("cifar10-resnet18")
        >>> e = whycam.explain(model, torch.zeros(2, 3, 32, 32), layers=["layer3[-2]", "layer4[-1]"])
        >>> e.map("gradcam", "layer4[-1]").shape
        torch.Size([2, 4, 4])
    """
    return Explainer(model, layers, methods, targets, layout, seed, differentiable, classes)(images)
