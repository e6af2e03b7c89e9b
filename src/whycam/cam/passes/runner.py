"""Run every pass of one explanation: the capture, and the further passes that methods ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whycam._lazy import renamed_attribute
from whycam.cam.network.inputs import Inputs
from whycam.cam.network.layout import Layout, detect_layout, hints_for
from whycam.cam.passes.autograd import differentiate
from whycam.cam.passes.capture import run_capture
from whycam.cam.passes.environment import explaining
from whycam.cam.passes.guided_relu import guided_relu
from whycam.cam.passes.output_gradients import OutputWatcher, Report
from whycam.cam.passes.plan import Plan
from whycam.cam.passes.tail import Tail
from whycam.cam.passes.trace import INPUT, LayerTrace, Scored
from whycam.cam.targets.resolve import leading, mirrored, repeat_target, score_rows, wants_output
from whycam.errors import WhycamError
from whycam.nn_utils import at_least_float32, hookable_modules, refuse_opaque_parts
from whycam.seeds import generator

_CACHE_BYTES = 1 << 30
"""Memory for the traces of perturbed images that one explanation keeps for its other methods, layers and targets."""


@dataclass
class _Budget:
    """The number of bytes left; shared by a runner and the runners of its perturbed copies."""

    left: int

    def take(self, size: int) -> bool:
        """Use ``size`` bytes if there is room for them."""
        if size > self.left:
            return False
        self.left -= size
        return True


class PassRunner:
    """Captures what the plan asks for, and is the `ForwardBackend` of the methods.

    Args:
        model: unwrapped.
        inputs: the batch, without inference tensors.
        plan: what to capture.
        layouts: layer name → layout, for layers whose layout the user gave; the key "" stands for all layers.
        seed: for everything that is drawn at random.
        budget: bytes for traces of perturbed images.

    Attributes:
        trace: the result of the capture.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        plan: Plan,
        *,
        layouts: Mapping[str, Layout | None] | None = None,
        seed: int = 0,
        budget: _Budget | None = None,
    ) -> None:
        self.model, self.inputs, self.plan, self.seed = model, inputs, plan, seed
        # Methods compute in full precision, but further passes of the network run in the precision of the first.
        device = inputs.images.device.type
        self._autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._layouts = {layer: layout for layer, layout in (layouts or {}).items() if layout is not None}
        self._maps: dict[int, Tensor] = {}
        self._hints = hints_for(model, inputs.images.shape[2:])
        self._tails: dict[tuple[str, bool], Tail] = {}
        self._perturbed: dict[str, PassRunner] = {}
        self._budget = budget or _Budget(_CACHE_BYTES)
        self._watcher = OutputWatcher(hookable_modules(model) if plan.keep_input_graph else ())
        with self._watcher.recording():
            self.trace = run_capture(model, inputs, plan)

    @property
    def images(self) -> Tensor:
        """(B, C, H, W)."""
        return self.inputs.images

    @property
    def autocast(self) -> bool:
        """See `ForwardBackend`."""
        return self._autocast[0]

    def layout(self, layer: str) -> Layout:
        """The layout of channels and positions in a layer's output."""
        if layer not in self._layouts:
            module = next(planned.module for planned in self.plan.layers if planned.name == layer)
            common, size = self._layouts.get(""), self.images.shape[2:]
            self._layouts[layer] = common or detect_layout(self.trace.activations[layer], size, module, self._hints)
        return self._layouts[layer]

    def view(self, layer: str, target: str) -> LayerTrace:
        """The `LayerTrace` of ``layer`` (`INPUT` for the images) for one of the plan's targets."""
        trace = self.trace
        if layer == INPUT:
            images = at_least_float32(self.images.detach())
            return LayerTrace(images, images.new_empty(0), trace.logits, trace.scores[target],
                              layer=INPUT, target=target, backend=self)  # fmt: skip
        return LayerTrace(
            self.activation_map(layer), self._map(layer, trace.gradients.get((layer, target))), trace.logits,
            trace.scores[target], self._map(layer, trace.hvp.get((layer, target))), layer, target, self,
        )  # fmt: skip

    def activation_map(self, layer: str) -> Tensor:
        """A layer's output as (B, C, …positions), at least float32."""
        return self._map(layer, self.trace.activations[layer])

    def _map(self, layer: str, tensor: Tensor | None) -> Tensor:
        """A captured tensor as (B, C, …positions), converted once; empty if there is none."""
        if tensor is None:
            return self.images.new_empty(0)
        if id(tensor) not in self._maps:  # the trace keeps the tensor alive, so no other tensor gets its id
            self._maps[id(tensor)] = at_least_float32(self.layout(layer).to_map(tensor))
        return self._maps[id(tensor)]

    def reads_whole_output(self, target: str) -> bool:
        """See `ForwardBackend`."""
        return wants_output(self.trace.targets[target]) and not self.trace.returns_tensor

    def score_images(self, images: Tensor, rows: Tensor, target: str) -> Scored:
        """See `ForwardBackend`."""
        with self._pass():
            # A copy: the network may work in place.
            inputs = self.inputs.with_images(images.to(self.images.dtype, copy=True), rows)
            return self._scored(self.model(*inputs.args, **inputs.kwargs), rows, target)

    def score_activations(self, layer: str, maps: Tensor, rows: Tensor, target: str) -> Scored:
        """See `ForwardBackend`."""
        layout, captured = self.layout(layer), self.trace.activations[layer].detach()
        # `from_map` reads the captured output only for tokens without a position.
        output = captured[rows.to(captured.device)] if layout.kind == "tokens" else captured
        replacement = layout.from_map(maps.to(captured.dtype), output)
        key = layer, self.reads_whole_output(target)
        with self._pass():
            if key not in self._tails:
                planned = next(planned for planned in self.plan.layers if planned.name == layer)
                self._tails[key] = Tail(self.model, planned, self.inputs, whole_output=key[1])
            return self._scored(self._tails[key](replacement, rows), rows, target)

    def score_logits(self, logits: Tensor, rows: Tensor, target: str) -> Scored:
        """See `ForwardBackend`."""
        with torch.no_grad():
            return self._scored(logits, rows, target)

    def trace_perturbed(
        self, key: str, perturb: Callable[[Tensor], Tensor], layer: str, target: str, *, mirror: bool = False
    ) -> LayerTrace:
        """See `ForwardBackend`."""
        runner = self._perturbed.get(key)
        if runner is None:
            with self._pass(gradients=True):
                runner = self._run_perturbed(key, perturb, mirror=mirror)
            # A trace beyond the budget is captured again each time, so memory does not grow with the number of copies.
            if self._budget.take(runner.captured_bytes()):
                self._perturbed[key] = runner
        return runner.view(layer, target)

    def _run_perturbed(self, key: str, perturb: Callable[[Tensor], Tensor], *, mirror: bool) -> PassRunner:
        """Capture k perturbed copies of the batch, with the targets of the unperturbed images."""
        with torch.no_grad():
            images = perturb(self.images)
        batch = len(self.images)
        copies, remainder = divmod(len(images), batch)
        if remainder or not copies:
            raise WhycamError(f"{key}: {len(images)} images are no whole number of copies of {batch}")
        rows = torch.arange(batch, device=images.device).repeat(copies)
        logits, width = self.trace.logits, images.shape[-1]
        targets = {
            name: repeat_target(mirrored(target, logits, width) if mirror else target, batch, rows)
            for name, target in self.trace.targets.items()
        }
        plan = replace(self.plan, targets=targets, frozen=True, keep_input_graph=False)
        return PassRunner(self.model, self.inputs.with_images(images, rows), plan, layouts=self._layouts,
                          seed=self.seed, budget=self._budget)  # fmt: skip

    def captured_bytes(self) -> int:
        """The memory that the captured tensors, their maps in float32 and the images take, in bytes."""
        trace = self.trace
        tensors = (*trace.activations.values(), *trace.gradients.values(), *trace.hvp.values(), self.images)
        copies = sum(4 * tensor.numel() for tensor in tensors if tensor.dtype.itemsize < 4)
        return sum(tensor.nbytes for tensor in tensors) + copies

    def image_gradient(self, images: Tensor, rows: Tensor, target: str, *, guided: bool = False) -> Tensor:
        """See `ForwardBackend`."""
        if guided:
            refuse_opaque_parts(self.model, "guided backpropagation needs every ReLU")
        with self._pass(gradients=True), guided_relu(guided):
            leaf = images.detach().clone().requires_grad_()
            inputs = self.inputs.with_images(leaf.clone(), rows)
            parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
            output = functional_call(self.model, parameters, inputs.args, inputs.kwargs)
            return _gradient_at(leaf, self._scored(output, rows, target).scores, target)

    def output_gradients(self, modules: Collection[nn.Module], target: str, report: Report) -> Tensor:
        """See `ForwardBackend`."""
        trace, watcher = self.trace, self._watcher
        with self._pass(gradients=True):
            if trace.input_leaf is None or not watcher.modules.issuperset(modules):
                watcher = OutputWatcher(modules)
                plan = Plan(targets={target: trace.targets[target]}, keep_input_graph=True, frozen=True)
                with watcher.recording():
                    trace = run_capture(self.model, self.inputs, plan)
            assert trace.input_leaf is not None  # both plans set keep_input_graph
            with watcher.reporting(report, modules):
                score, keep = trace.graph_scores[target], trace is self.trace
                return _gradient_at(trace.input_leaf, score, target, retain_graph=keep)

    again = renamed_attribute("again", "trace_perturbed")
    mixed = renamed_attribute("mixed", "autocast")
    reads_more = renamed_attribute("reads_more", "reads_whole_output")

    def generator(self, *purpose: int | str) -> torch.Generator:
        """See `ForwardBackend`."""
        return generator(self.seed, *purpose)

    def _scored(self, output: object, rows: Tensor, target: str) -> Scored:
        tensor = leading(output, len(rows))
        logits = self.trace.logits.new_zeros(len(rows), 0) if tensor is None else tensor
        return Scored(logits, score_rows(self.trace.targets[target], logits, rows, self.trace.logits, output))

    @contextmanager
    def _pass(self, *, gradients: bool = False) -> Iterator[None]:
        """Restore the caller's autocast, which is off while methods compute, and set the grad mode.

        The environment is in force already if a method asks during the explanation, and entered again if it asks later.
        """
        enabled, dtype = self._autocast
        device = self.images.device.type
        autocast = torch.autocast(device, dtype=dtype, enabled=enabled)
        with explaining(self.model), torch.set_grad_enabled(gradients), autocast:
            yield


def _gradient_at(images: Tensor, score: Tensor, target: str, *, retain_graph: bool = False) -> Tensor:
    gradient = differentiate(score.sum(), [images], retain_graph=retain_graph)[0] if score.requires_grad else None
    if gradient is None:
        raise WhycamError(f"the score of target {target!r} does not depend on the images")
    return gradient
