"""Inspect a network: the layers that have a map, their grids and measured receptive fields, and the default layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.cam.network.inputs import Inputs, InputsLike
from whycam.cam.network.layers import Layer
from whycam.cam.network.layout import ArchitectureHints, Layout, detect_layout, hints_for
from whycam.cam.passes.autograd import REENTRANT, differentiate, in_reentrant_checkpoint
from whycam.cam.passes.environment import explaining
from whycam.cam.targets.resolve import leading
from whycam.errors import WhycamError
from whycam.nn_utils import first_tensor, hookable_modules, hooked


@dataclass(frozen=True)
class LayerInfo:
    """A layer that has a map.

    Attributes:
        path: the module's name in ``named_modules``.
        kind: the module's type.
        shape: of its output for one image, without the batch axis.
        grid: number of positions along each axis of the image.
        channels: C.
        receptive_field: the measured receptive field of the cell at the center: along each axis, the number of pixels
            from the first to the last one with a gradient. It is a lower bound of the theoretical receptive field, and
            at most the image's size.
        affects_output: whether the network's largest output depends on any of the positions.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    channels: int
    receptive_field: tuple[int, ...]
    affects_output: bool


@dataclass
class _RecordedOutput:
    module: nn.Module
    tensor: Tensor
    layout: Layout
    version: int  # of the tensor: the number of in-place changes before it was recorded
    ran_before: bool  # whether the module had already run once


def inspect_layers(model: nn.Module, inputs: Inputs | InputsLike) -> list[LayerInfo]:
    """List every layer that has a map of more than one cell, in order of execution.

    Args:
        model: the network; not changed.
        inputs: a batch; its first image is used.

    Raises:
        WhycamError: the batch does not fit the model.
    """
    paths = {module: path for path, module in model.named_modules()}
    recorded, image, gradients = _record_outputs(model, inputs)
    layers = []
    for output, gradient in zip(recorded, gradients, strict=True):
        maps = output.layout.to_map(output.tensor)
        grid = tuple(maps.shape[2:])
        center = sum(size // 2 * math.prod(grid[axis + 1 :]) for axis, size in enumerate(grid))
        (image_gradient,) = differentiate(maps.flatten(2)[0, :, center].sum(), [image], retain_graph=True)
        layers.append(
            LayerInfo(
                path=paths[output.module],
                kind=type(output.module).__name__,
                shape=tuple(output.tensor.shape[1:]),
                grid=grid,
                channels=maps.shape[1],
                receptive_field=_extent(image_gradient, image.shape[2:]),
                affects_output=_affects_output(output, gradient),
            )
        )
    return layers


def default_layer(model: nn.Module, inputs: Inputs | InputsLike) -> Layer:
    """The last layer, in order of execution, on whose positions the network's output depends.

    Any layer with convolutional output qualifies. A layer that works in place on another layer's output (a ReLU, for
    example) counts as a layer. A module that runs several times is replaced by the block that returns its output.
    Of layers with token output, only blocks and LayerNorms qualify: after the last attention only the class token
    matters, so the last layer in which the patches matter is the LayerNorm before it. The network's output itself,
    attention matrices and layers with a single cell do not qualify.

    Args:
        model: the network; it runs once on the first image, and is not changed.
        inputs: a batch.

    Raises:
        WhycamError: there is no such layer.
    """
    paths = {module: path for path, module in model.named_modules()}
    recorded, _, gradients = _record_outputs(model, inputs)
    chosen: _RecordedOutput | None = None
    for output, gradient in zip(recorded, gradients, strict=True):
        token_part = output.layout.kind == "tokens" and not (
            isinstance(output.module, nn.LayerNorm) or any(True for _ in output.module.children())
        )
        if token_part or not _affects_output(output, gradient):
            continue
        # Choose the module that computed the tensor, not a container that only returns it, unless the module has run
        # before.
        returned_only = chosen is not None and chosen.tensor is output.tensor and chosen.version == output.version
        if chosen is None or not returned_only or (chosen.ran_before and not output.ran_before):
            chosen = output
    if chosen is None:
        raise WhycamError(
            f"{type(model).__name__} has no layer with a spatial map (a (B, C, h, w) output larger than 1×1) for this "
            "input; name the layer to explain"
        )
    path = paths[chosen.module]
    return Layer(path, path, chosen.module)


def explain_missing_gradient(model: nn.Module, inputs: Inputs, error: WhycamError) -> WhycamError:
    """Explain a missing gradient at a layer, if the model itself switches gradients off in a part of it.

    Returns:
        ``error``, or a new one that names the part under ``no_grad`` and a layer to choose instead.
    """
    paths = {module: path for path, module in model.named_modules()}
    without_gradients: dict[str, bool] = {}  # path → whether it is checkpointed with use_reentrant=True
    layers_after: list[str] = []

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        if not torch.is_grad_enabled():
            without_gradients[paths[module]] = in_reentrant_checkpoint()
            layers_after.clear()
            return
        tensor = first_tensor(output)
        if tensor is not None and _layout_of_map(tensor, module, single.images, hints) is not None:
            layers_after.append(paths[module])

    single = inputs.with_images(inputs.images[:1], torch.zeros(1, dtype=torch.long)).detached()
    hints = hints_for(model, single.images.shape[2:])
    hooks = ((module, record) for module in hookable_modules(model) if module is not model)
    with explaining(model), torch.enable_grad(), hooked(hooks):
        model(*single.args, **single.kwargs)
    if not without_gradients:
        return error
    outermost = min(without_gradients, key=lambda path: path.count("."))
    if without_gradients[outermost]:
        return WhycamError(f"{error}: {REENTRANT}")
    advice = (
        f"choose a layer after it, for example {layers_after[-1]!r}"
        if layers_after
        else "no layer after it has a map, so remove the no_grad, or use a method without gradients (for example "
        "eigencam or ablationcam)"
    )
    return WhycamError(f"{error}: {outermost!r} runs under torch.no_grad() inside the model; {advice}")


def _layout_of_map(
    tensor: Tensor, module: nn.Module, image: Tensor, hints: Callable[[], ArchitectureHints]
) -> Layout | None:
    """The layout of an output that can be a map: more than one position, and no attention matrix; else None."""
    if tensor.ndim < 3 or len(tensor) != len(image) or _is_attention(tensor):
        return None
    try:
        layout = detect_layout(tensor, image.shape[2:], module, hints)
    except WhycamError:
        return None
    if tensor.ndim != image.ndim and layout.kind != "tokens":
        return None
    grid = layout.to_map(tensor).shape[2:]
    fine = math.prod(grid) > 1 and all(cells <= size for cells, size in zip(grid, image.shape[2:], strict=True))
    return layout if fine else None


def _record_outputs(
    model: nn.Module, inputs: Inputs | InputsLike
) -> tuple[list[_RecordedOutput], Tensor, tuple[Tensor | None, ...]]:
    """Run the network on the first image.

    Returns:
        The outputs of all layers that have a map, the image, and the gradients of the network's largest output at these
        layers' outputs.
    """
    inputs = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs)
    inputs = inputs.with_images(inputs.images[:1], torch.zeros(1, dtype=torch.long)).detached()
    image = inputs.images.clone().requires_grad_()
    inputs = inputs.with_images(image.clone())  # a copy: the network may change it in place
    hints = hints_for(model, image.shape[2:])
    recorded: list[_RecordedOutput] = []
    ran: set[nn.Module] = set()

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            layout = _layout_of_map(tensor, module, image, hints)
            if layout is not None:
                recorded.append(_RecordedOutput(module, tensor, layout, tensor._version, module in ran))
        ran.add(module)

    hooks = ((module, record) for module in hookable_modules(model) if module is not model)
    with explaining(model), torch.enable_grad(), hooked(hooks):
        output = model(*inputs.args, **inputs.kwargs)
    logits, last = leading(output, 1), first_tensor(output)
    recorded = [layer for layer in recorded if layer.tensor is not last]
    if logits is None or not recorded or not logits.requires_grad:
        return recorded, image, (None,) * len(recorded)
    score = logits.flatten().max()
    gradients = differentiate(score, [layer.tensor for layer in recorded], retain_graph=True)
    return recorded, image, gradients


def _is_attention(tensor: Tensor) -> bool:
    """Whether a tensor looks like attention weights: (B, heads, queries, keys), not negative, rows that sum to 1."""
    if tensor.ndim != 4 or tensor.shape[-1] < 2:
        return False
    rows = tensor.detach()
    return bool((rows >= 0).all()) and bool(((rows.float().sum(dim=-1) - 1).abs() < 0.02).all())


def _affects_output(output: _RecordedOutput, gradient: Tensor | None) -> bool:
    return gradient is not None and bool((output.layout.to_map(gradient) != 0).any())


def _extent(gradient: Tensor | None, size: torch.Size) -> tuple[int, ...]:
    """Along each axis, the number of pixels from the first to the last one with a gradient."""
    if gradient is None:
        return (0,) * len(size)
    nonzero = (gradient[0] != 0).any(dim=0)
    extents = []
    for axis in range(len(size)):
        others = [other for other in range(len(size)) if other != axis]
        pixels = (nonzero.amax(dim=others) if others else nonzero).nonzero().flatten()
        extents.append(int(pixels[-1] - pixels[0]) + 1 if len(pixels) else 0)
    return tuple(extents)
