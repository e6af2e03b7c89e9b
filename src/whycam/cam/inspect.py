"""Look a network over: which layers have a map, how fine it is, how much of the image a cell sees, which to take."""

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
        path: as ``named_modules`` calls it.
        kind: the module's type.
        shape: of its output for one image, without the batch.
        grid: positions along each of the image's axes.
        channels: C.
        receptive_field: along each axis, how many pixels of the image a cell in the middle was seen to depend on; the
            image's own size means that it sees all of it. Measured, so it is a lower bound.
        affects_output: whether the network's answer depends on any of the positions.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    channels: int
    receptive_field: tuple[int, ...]
    affects_output: bool


@dataclass
class _Seen:
    module: nn.Module
    tensor: Tensor
    layout: Layout
    version: int  # of the tensor: how often it had been changed in place
    before: bool  # whether the module had run already


def inspect_layers(model: nn.Module, inputs: Inputs | InputsLike) -> list[LayerInfo]:
    """List every layer that has a map of more than one cell, in order of execution.

    Args:
        model: the network, left as it was.
        inputs: a batch; its first image is used.

    Raises:
        WhycamError: no layer has one.
    """
    paths = {module: path for path, module in model.named_modules()}
    seen, image, slopes = _look(model, inputs)
    places = []
    for entry, slope in zip(seen, slopes, strict=True):
        mapped = entry.layout.to_map(entry.tensor)
        grid = tuple(mapped.shape[2:])
        cell = sum(size // 2 * math.prod(grid[axis + 1 :]) for axis, size in enumerate(grid))
        middle = mapped.flatten(2)[0, :, cell].sum()
        (gradient,) = differentiate(middle, [image], retain_graph=True)
        places.append(
            LayerInfo(
                path=paths[entry.module],
                kind=type(entry.module).__name__,
                shape=tuple(entry.tensor.shape[1:]),
                grid=grid,
                channels=mapped.shape[1],
                receptive_field=_extent(gradient, image.shape[2:]),
                affects_output=_affects_output(entry, slope),
            )
        )
    return places


def default_layer(model: nn.Module, inputs: Inputs | InputsLike) -> Layer:
    """The last layer, in order of execution, whose positions the network's answer depends on.

    Of convolutional layers any will do: what works in place on another's output is a layer of its own, and one that
    runs several times gives way to the block that hands its output on. Of token layers a block or a LayerNorm (behind
    the last attention a class token alone counts, so the patches' last word is the LayerNorm before it). The network's
    output itself, attention matrices and layers of a single cell are no candidates.

    Args:
        model: the network; it is run once on the first of ``inputs``, and left as it was.
        inputs: a batch.

    Raises:
        WhycamError: there is no such layer.
    """
    paths = {module: path for path, module in model.named_modules()}
    seen, _, slopes = _look(model, inputs)
    chosen: _Seen | None = None
    for entry, slope in zip(seen, slopes, strict=True):
        token_part = entry.layout.kind == "tokens" and not (
            isinstance(entry.module, nn.LayerNorm) or any(True for _ in entry.module.children())
        )
        if token_part or not _affects_output(entry, slope):
            continue
        # The module that made the tensor, not the containers that only hand it on, unless it is used elsewhere too.
        handed_on = chosen is not None and chosen.tensor is entry.tensor and chosen.version == entry.version
        if chosen is None or not handed_on or (chosen.before and not entry.before):
            chosen = entry
    if chosen is None:
        raise WhycamError(
            f"{type(model).__name__} has no layer with a spatial map (a (B, C, h, w) output larger than 1×1) for this "
            "input; name the layer to explain"
        )
    path = paths[chosen.module]
    return Layer(path, path, chosen.module)


def explain_missing_gradient(model: nn.Module, inputs: Inputs, error: WhycamError) -> WhycamError:
    """Say more of a layer without a gradient, where the model itself switches gradients off on the way.

    Returns:
        ``error``, or one that names the part under ``no_grad`` and a layer to choose instead.
    """
    paths = {module: path for path, module in model.named_modules()}
    off: dict[str, bool] = {}  # path → whether it is checkpointed
    behind: list[str] = []

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        if not torch.is_grad_enabled():
            off[paths[module]] = in_reentrant_checkpoint()
            behind.clear()
            return
        tensor = first_tensor(output)
        if tensor is not None and _layout_of_map(tensor, module, given.images, hints) is not None:
            behind.append(paths[module])

    given = inputs.with_images(inputs.images[:1], torch.zeros(1, dtype=torch.long)).detached()
    hints = hints_for(model, given.images.shape[2:])
    # Not what holds the part: it is the part itself that runs without.
    hooks = ((module, record) for module in hookable_modules(model) if module is not model)
    with explaining(model), torch.enable_grad(), hooked(hooks):
        model(*given.args, **given.kwargs)
    if not off:
        return error
    whole = min(off, key=lambda path: path.count("."))
    if off[whole]:
        return WhycamError(f"{error}: {REENTRANT}")
    instead = (
        f"choose a layer behind it, {behind[-1]!r} say"
        if behind
        else "no layer behind it has a map, so take the no_grad out, or use a method without gradients (eigencam, say, "
        "or ablationcam)"
    )
    return WhycamError(f"{error}: {whole!r} runs under torch.no_grad() inside the model; {instead}")


def _layout_of_map(
    tensor: Tensor, module: nn.Module, image: Tensor, hints: Callable[[], ArchitectureHints]
) -> Layout | None:
    """A layer's layout if it has more than one position, as far as its shape tells, and is no attention matrix."""
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


def _look(model: nn.Module, inputs: Inputs | InputsLike) -> tuple[list[_Seen], Tensor, tuple[Tensor | None, ...]]:
    """Run the first image: the layers that have a map, the image, and the answer's gradient in each layer's output."""
    given = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs)
    given = given.with_images(given.images[:1], torch.zeros(1, dtype=torch.long)).detached()
    image = given.images.clone().requires_grad_()
    given = given.with_images(image.clone())  # the network may work in place on it
    hints = hints_for(model, image.shape[2:])
    seen: list[_Seen] = []
    ran: set[nn.Module] = set()

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            layout = _layout_of_map(tensor, module, image, hints)
            if layout is not None:
                seen.append(_Seen(module, tensor, layout, tensor._version, module in ran))
        ran.add(module)

    hooks = ((module, record) for module in hookable_modules(model) if module is not model)
    with explaining(model), torch.enable_grad(), hooked(hooks):
        output = model(*given.args, **given.kwargs)
    answer, last = leading(output, 1), first_tensor(output)
    seen = [entry for entry in seen if entry.tensor is not last]
    if answer is None or not seen or not answer.requires_grad:
        return seen, image, (None,) * len(seen)
    score = answer.flatten().max()
    slopes = differentiate(score, [entry.tensor for entry in seen], retain_graph=True)
    return seen, image, slopes


def _is_attention(tensor: Tensor) -> bool:
    """Whether a (B, heads, queries, keys) tensor's rows are weights that add up to one."""
    if tensor.ndim != 4 or tensor.shape[-1] < 2:
        return False
    rows = tensor.detach()
    return bool((rows >= 0).all()) and bool(((rows.float().sum(dim=-1) - 1).abs() < 0.02).all())


def _affects_output(entry: _Seen, slope: Tensor | None) -> bool:
    return slope is not None and bool((entry.layout.to_map(slope) != 0).any())


def _extent(gradient: Tensor | None, size: torch.Size) -> tuple[int, ...]:
    """Along each axis, from the first to the last pixel with a gradient."""
    if gradient is None:
        return (0,) * len(size)
    touched = (gradient[0] != 0).any(dim=0)
    extents = []
    for axis in range(len(size)):
        others = [other for other in range(len(size)) if other != axis]
        along = (touched.amax(dim=others) if others else touched).nonzero().flatten()
        extents.append(int(along[-1] - along[0]) + 1 if len(along) else 0)
    return tuple(extents)
