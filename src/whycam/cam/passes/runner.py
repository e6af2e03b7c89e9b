"""One call of `explain`: the network, the batch, what was captured so far, and every further pass over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whycam.cam.methods.registry import INPUT, Method
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layers import Layer
from whycam.cam.network.layout import Layout, detect_layout, hints_for
from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.capture import Trace, capture
from whycam.cam.passes.guided_relu import guided_relu
from whycam.cam.passes.tail import Tail
from whycam.cam.passes.trace import LayerTrace, Scored
from whycam.cam.targets.classification import Target
from whycam.cam.targets.resolve import leading, mirrored, repeat_target, retargeted, score_rows, wants_output
from whycam.errors import WhycamError
from whycam.nn_utils import hookable_modules, instrumented, refuse_opaque_parts
from whycam.seeds import generator

See = Callable[[nn.Module, Tensor], None]
# Bytes of runs on altered copies that one call keeps for its other methods, layers and targets.
_KEPT = 1 << 30


class Run:
    """Captures once, and answers what methods ask beyond that.

    Args:
        model: unwrapped.
        inputs: the batch.
        layers: where to look.
        targets: name → target, as the user named them.
        methods: decide which passes are needed.
        layouts: layer name → layout, where it was given; "" for all.
        seed: of everything drawn at random.
        differentiable: keep the graph.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        layers: Sequence[Layer],
        targets: Mapping[str, Target],
        methods: Sequence[Method],
        *,
        layouts: Mapping[str, Layout] | None = None,
        seed: int = 0,
        differentiable: bool = False,
    ) -> None:
        # What was made under inference_mode cannot take part in a graph.
        self._model, self.inputs, self.layers = model, inputs.ordinary(), tuple(layers)
        self.names = tuple(targets)
        self.seed, self.differentiable = seed, differentiable
        self._given_layouts = dict(layouts or {})
        self._layouts: dict[str, Layout] = {}
        self._hints = hints_for(self._model, inputs.images.shape[2:])
        self._again: dict[str, Run] = {}
        self._room = [_KEPT]  # shared with the runs that are made of this one
        self._tails: dict[tuple[str, bool], Tail] = {}
        asked: dict[str, Target] = dict(targets)
        sloped: dict[str, None] = {}
        curved: dict[str, None] = {}
        for method in methods:
            for name in self.names:
                mine = self.target_name(name, method)
                if method.retarget is not None:
                    asked[mine] = retargeted(targets[name], method.retarget)
                if method.needs_gradients and method.scope != "input":
                    sloped[mine] = None
                if "curvature" in method.needs:
                    curved[mine] = None
        self._sloped, self._curved = tuple(sloped), tuple(curved)
        # Methods compute in full precision, but the network is rerun as it was run first.
        device = inputs.images.device.type
        self._mixed = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._watched: frozenset[nn.Module] = frozenset()
        # Told of gradients; a list of its own, because a graph whose hooks knew the run would never be freed.
        self._listeners: list[See] = []
        rooted = not differentiable and any("outputs" in method.needs for method in methods)
        with self._watching(hookable_modules(model) if rooted else ()):
            self.trace = self._capture(asked, rooted=rooted)

    @property
    def model(self) -> nn.Module:
        """The network, unwrapped."""
        return self._model

    @property
    def images(self) -> Tensor:
        """(B, C, H, W)."""
        return self.inputs.images

    @property
    def mixed(self) -> bool:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        return self._mixed[0]

    @staticmethod
    def target_name(name: str, method: Method) -> str:
        """The target that ``method`` differentiates when asked about ``name``."""
        return name if method.retarget is None else f"{name}|{method.name}"

    def layout(self, layer: str) -> Layout:
        """Where channels and positions lie in a layer's output."""
        if layer not in self._layouts:
            given = self._given_layouts.get(layer, self._given_layouts.get(""))
            module = next(known.module for known in self.layers if known.name == layer)
            activations, size = self.trace.activations[layer], self.images.shape[2:]
            self._layouts[layer] = given or detect_layout(activations, size, module, self._hints)
        return self._layouts[layer]

    def view(self, layer: str, name: str, method: Method) -> LayerTrace:
        """What ``method`` sees of ``layer`` for the target ``name``."""
        return self._view(layer, self.target_name(name, method))

    def input_view(self, name: str, method: Method) -> LayerTrace:
        """What a method of scope "input" sees."""
        return self._view(INPUT, self.target_name(name, method))

    def reads_more(self, target: str) -> bool:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        return wants_output(self.trace.targets[target]) and not self.trace.plain

    def score_images(self, images: Tensor, rows: Tensor, target: str) -> Scored:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        with self._rerunning():
            # A copy: the network may work in place.
            given = self.inputs.with_images(images.to(self.images.dtype, copy=True), rows)
            return self._scored(self.model(*given.args, **given.kwargs), rows, target)

    def score_activations(self, layer: str, maps: Tensor, rows: Tensor, target: str) -> Scored:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        layout, own = self.layout(layer), self.trace.activations[layer].detach()
        # Only tokens without a position are taken from the layer's own output.
        output = own[rows.to(own.device)] if layout.kind == "tokens" else own
        replaced = layout.from_map(maps.to(own.dtype), output)
        key = layer, self.reads_more(target)
        with self._rerunning():
            if key not in self._tails:
                found = next(known for known in self.layers if known.name == layer)
                self._tails[key] = Tail(self.model, found, self.inputs, whole_output=key[1])
            return self._scored(self._tails[key](replaced, rows), rows, target)

    def score_logits(self, logits: Tensor, rows: Tensor, target: str) -> Scored:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        with torch.no_grad():
            return self._scored(logits, rows, target)

    def again(
        self, key: str, make: Callable[[Tensor], Tensor], layer: str, target: str, *, mirror: bool = False
    ) -> LayerTrace:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        run = self._again.get(key)
        if run is None:
            # Images, rows and targets made under the caller's inference_mode could not take part in a graph.
            with torch.inference_mode(False), torch.no_grad():
                images = make(self.images)
                copies, rest = divmod(len(images), len(self.images))
                if rest or not copies:
                    raise WhycamError(
                        f"{key}: {len(images)} images are no whole number of copies of {len(self.images)}"
                    )
                run = self._on_copies(images, copies, mirror=mirror)
            size = run._bytes()
            # Beyond that they are made anew each time, so that memory does not grow with the number of copies.
            if size <= self._room[0]:
                self._room[0] -= size
                self._again[key] = run
        return run._view(layer, target)

    def _bytes(self) -> int:
        trace = self.trace
        found = (*trace.activations.values(), *trace.gradients.values(), *trace.curvature.values(), self.images)
        return sum(tensor.nbytes for tensor in found)

    def _on_copies(self, images: Tensor, copies: int, *, mirror: bool) -> Run:
        """A run of its own on altered copies of the batch, asked what this one is asked about the unaltered images."""
        trace, batch, run = self.trace, len(self.images), copy(self)
        rows = torch.arange(batch, device=images.device).repeat(copies)
        targets = {
            name: repeat_target(mirrored(asked, trace.logits, images.shape[-1]) if mirror else asked, batch, rows)
            for name, asked in trace.targets.items()
        }
        run.inputs = self.inputs.with_images(images, rows)
        run._again, run._tails, run._listeners, run._watched = {}, {}, [], frozenset()
        with self._rerunning(gradients=True):
            run.trace = run._capture(targets, frozen=True)
        return run

    def image_gradient(self, images: Tensor, rows: Tensor, target: str, *, guided: bool = False) -> Tensor:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        if guided:
            refuse_opaque_parts(self.model, "guided backpropagation needs every ReLU")
        with self._rerunning(gradients=True), guided_relu(guided):
            x = images.detach().clone().requires_grad_()
            given = self.inputs.with_images(x.clone(), rows)
            parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
            score = self._scored(functional_call(self.model, parameters, given.args, given.kwargs), rows, target).scores
            return _in_images(score, x, target)

    def output_gradients(self, modules: Collection[nn.Module], target: str, see: See) -> Tensor:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        trace = self.trace
        with self._rerunning(gradients=True):
            if trace.root is None or not self._watched.issuperset(modules):
                with self._watching(modules):
                    trace = capture(self.model, self.inputs, (), {target: trace.targets[target]}, gradients=(),
                                    frozen=True, rooted=True)  # fmt: skip
            score, root = trace.rooted[target], trace.root
            assert root is not None  # it was asked for
            wanted = frozenset(modules)

            def tell(module: nn.Module, gradient: Tensor) -> None:
                if module in wanted:
                    see(module, gradient)

            self._listeners.append(tell)
            try:
                return _in_images(score, root, target, retain_graph=trace is self.trace)
            finally:
                self._listeners.clear()

    @contextmanager
    def _watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Whenever a gradient later comes by the output of one of ``modules``, the listeners are told."""
        listeners = self._listeners

        def told(module: nn.Module, gradient: Tensor) -> None:
            for listen in listeners:
                listen(module, gradient)

        def watch(module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                # A hook on the tensor itself gives the gradient there also when a ReLU then works in place on it;
                # and as the gradient comes by, nothing has to be kept.
                output.register_hook(partial(told, module))  # type: ignore[no-untyped-call]

        self._watched = frozenset(modules)
        with ExitStack() as hooks:
            for module in self._watched:
                hooks.enter_context(module.register_forward_hook(watch))
            yield

    def generator(self, *purpose: int | str) -> torch.Generator:
        """See `whycam.cam.passes.trace.ForwardBackend`."""
        return generator(self.seed, *purpose)

    def _capture(self, targets: Mapping[str, Target], *, frozen: bool = False, rooted: bool = False) -> Trace:
        return capture(self.model, self.inputs, self.layers, targets, gradients=self._sloped, curvature=self._curved,
                       frozen=frozen, differentiable=self.differentiable, rooted=rooted)  # fmt: skip

    def _scored(self, output: object, rows: Tensor, target: str) -> Scored:
        found = leading(output, len(rows))
        logits = self.trace.logits.new_zeros(len(rows), 0) if found is None else found
        return Scored(logits, score_rows(self.trace.targets[target], logits, rows, self.trace.logits, output))

    def _view(self, layer: str, target: str) -> LayerTrace:
        trace = self.trace
        if layer == INPUT:
            images = _at_least_float32(self.images.detach())
            return LayerTrace(images, images.new_empty(0), trace.logits, trace.scores[target],
                              layer=INPUT, target=target, runs=self)  # fmt: skip
        to_map = self.layout(layer).to_map
        activations = _at_least_float32(to_map(trace.activations[layer]))

        def read(found: Mapping[tuple[str, str], Tensor]) -> Tensor:
            tensor = found.get((layer, target))
            return activations.new_empty(0) if tensor is None else _at_least_float32(to_map(tensor))

        return LayerTrace(activations, read(trace.gradients), trace.logits, trace.scores[target],
                          read(trace.curvature), layer, target, self)  # fmt: skip

    @contextmanager
    def _rerunning(self, *, gradients: bool = False) -> Iterator[None]:
        mixed, dtype = self._mixed
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
            torch.autocast(self.images.device.type, dtype=dtype, enabled=mixed),
            instrumented(self.model),
        ):
            yield


def _in_images(score: Tensor, images: Tensor, target: str, *, retain_graph: bool = False) -> Tensor:
    found = differentiate(score.sum(), [images], retain_graph=retain_graph)[0] if score.requires_grad else None
    if found is None:
        raise WhycamError(f"the score of target {target!r} does not depend on the images")
    return found


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
