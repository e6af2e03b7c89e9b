"""Helpers for a user's ``nn.Module`` and for what it returns, shared by every package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import MethodType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from whycam.errors import WhycamError


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has the mode it had before.

    The mode is set module by module. ``model.train()`` at the end would also switch modules to training mode that the
    user had frozen, and some modules do more in ``eval()`` than switch (adapters merge their weights, for example).
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def instrumented(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode and make every submodule run its own ``forward``, so that hooks and gradients reach it.

    Inside the block:

    * Wrappers (see `wrapped_by`) call the module that they wrap.
    * Compiled modules run uncompiled, because a compiled module does not run the hooks of the modules inside it.
    * Parameters and buffers that were made under ``inference_mode`` are replaced by copies that autograd accepts.

    Afterwards everything is as before. Blocks may be nested.

    Raises:
        WhycamError: a lazy module has not been initialized by a first batch.
    """
    copies: dict[int, Tensor] = {}
    with in_eval_mode(model), ExitStack() as undo:
        for module in model.modules():
            if _is_script(module):
                continue
            if (plain := _plain_forward(module)) is not None:
                _exchange(vars(module), "forward", plain, undo)
            if vars(module).get("_compiled_call_impl") is not None:
                _exchange(vars(module), "_compiled_call_impl", None, undo)
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        _exchange_inference_tensor(module, table, name, tensor, copies, undo)
        yield


def _exchange(table: Any, name: str, value: object, undo: ExitStack) -> None:
    """Put ``value`` into ``table`` until ``undo`` closes."""
    if name in table:
        undo.callback(table.__setitem__, name, table[name])
    else:
        undo.callback(table.pop, name, None)
    table[name] = value


def _exchange_inference_tensor(
    module: nn.Module, table: Any, name: str, tensor: Tensor, copies: dict[int, Tensor], undo: ExitStack
) -> None:
    if is_lazy(tensor):
        raise WhycamError(
            f"the model's {type(module).__name__} has no weights before it has seen a batch: call model(images) once"
        )
    if tensor.is_inference():
        _exchange(table, name, _copy_for_autograd(tensor, copies), undo)


def _plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The function to call instead of ``module.forward`` if the module is a wrapper or compiled, else None."""
    inner = wrapped_by(module)
    if inner is not None:
        # Looked up at each call, so that a tracer that patches nn.Module.__call__ sees the call.
        return lambda *args, **kwargs: inner(*args, **kwargs)
    compiled = getattr(module.forward, "_torchdynamo_orig_callable", None)
    if compiled is None:
        return None
    return MethodType(compiled, module) if isinstance(module.forward, MethodType) else compiled


def _copy_for_autograd(tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
    """One copy for each tensor, so that tied weights stay tied."""
    if id(tensor) not in copies:
        with torch.inference_mode(False):
            copied = tensor.detach().clone()
        parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if parameter else copied
    return copies[id(tensor)]


def without_inference_tensors(value: Any) -> Any:
    """Copy tensors made under ``inference_mode``, also inside lists, so that autograd accepts them.

    Every other value is returned as it is.
    """
    if type(value) in (list, tuple):
        members = [without_inference_tensors(member) for member in value]
        changed = any(new is not old for new, old in zip(members, value, strict=True))
        return type(value)(members) if changed else value
    if not isinstance(value, Tensor) or not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def hookable_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every module that accepts hooks."""
    return filter(takes_hooks, model.modules())


@contextmanager
def hooked(
    hooks: Iterable[tuple[nn.Module, Callable[..., object]]], *, before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Register a hook on each module inside the block; afterwards all are removed, also after an error.

    Args:
        hooks: (module, hook) pairs; see `torch.nn.Module.register_forward_hook`.
        before: call the hooks before the module runs; by default afterwards.
        with_kwargs: pass the module's keyword arguments to the hooks.
    """
    with ExitStack() as handles:
        for module, hook in hooks:
            register: Any = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.callback(register(hook, with_kwargs=with_kwargs).remove)
        yield


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; every other type stays as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def takes_hooks(module: nn.Module) -> bool:
    """Whether a module accepts hooks.

    A scripted module does not. A traced one does, but no hook on a module inside it is ever called.
    """
    return not isinstance(module, RecursiveScriptModule)


def first_tensor(output: object) -> Tensor | None:
    """The leading tensor of a module's output: itself, or the first one in a tuple, list, dict or dataclass."""
    if isinstance(output, Tensor):
        return output
    return next((tensor for _, part in _members(output) if (tensor := first_tensor(part)) is not None), None)


def with_first_tensor(output: object, replacement: Tensor) -> Any:
    """``output`` with the tensor that `first_tensor` finds replaced, in containers of the same types.

    The other members stay as they are. ``output`` itself is not changed.

    Raises:
        WhycamError: there is no such tensor.
    """
    if isinstance(output, Tensor):
        return replacement
    for key, member in _members(output):
        if first_tensor(member) is not None:
            return _with_members(output, {key: with_first_tensor(member, replacement)})
    raise WhycamError(f"a {type(output).__name__} holds no tensor that could be replaced")


def rows_of(output: object, images: int, rows: Tensor) -> Any:
    """Select the images at ``rows`` (n,) from a network's output for ``images`` images.

    Tensors as long as the batch are indexed, also inside tuples, lists, mappings and dataclasses; so is a list (or
    tuple) with one mapping or object per image, as detectors return it. Everything else stays as it is.
    """
    if isinstance(output, Tensor):
        return output[rows.to(output.device)] if output.ndim and len(output) == images else output
    if is_per_image(output, images):
        chosen = [output[row] for row in rows.tolist()]  # type: ignore[index]
        return tuple(chosen) if isinstance(output, tuple) else chosen
    members = list(_members(output))
    return _with_members(output, {key: rows_of(part, images, rows) for key, part in members}) if members else output


def is_per_image(output: object, images: int) -> bool:
    """Whether ``output`` is a list with one mapping or object for each image, instead of one tensor for all."""
    is_list = isinstance(output, tuple | list) and not hasattr(output, "_fields") and len(output) == images
    return is_list and all(isinstance(item, Mapping) or is_dataclass(item) for item in output)  # type: ignore[attr-defined]


def _members(output: object) -> Iterator[tuple[Any, object]]:
    """A container's members as (key, index or field name; member); nothing if it is no container."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    elif is_dataclass(output) and not isinstance(output, type):
        yield from ((field.name, getattr(output, field.name)) for field in fields(output))


def _with_members(container: Any, changes: Mapping[Any, object]) -> Any:
    """A shallow copy of the same type with some members replaced."""
    if isinstance(container, tuple | list):
        members: list[Any] = [changes.get(index, member) for index, member in enumerate(container)]
        return type(container)(*members) if hasattr(container, "_fields") else type(container)(members)
    if isinstance(container, Mapping) and not isinstance(container, MutableMapping):
        raise WhycamError(f"a {type(container).__name__} cannot be altered; choose the layer inside it")
    result = copy.copy(container)
    for key, member in changes.items():
        if isinstance(container, Mapping):
            result[key] = member
        else:
            object.__setattr__(result, key, member)
    return result


def wrapped_by(module: nn.Module) -> nn.Module | None:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``; None if not a wrapper."""
    if _is_script(module):
        return None
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module._modules.get("_orig_mod")


def is_opaque(module: nn.Module) -> bool:
    """Whether a module is a TorchScript or ``torch.export`` program.

    The submodules of such a program hold the weights, but they never run, so their hooks are never called.
    """
    return _is_script(module) or _is_exported(module)


def refuse_opaque_parts(model: nn.Module, what: str) -> None:
    """Refuse a model with a part that hooks cannot reach, for a method that has to reach all of it.

    Args:
        model: the network.
        what: the beginning of the error sentence, such as "FullGrad needs every bias".

    Raises:
        WhycamError: a part is a TorchScript or exported program.
    """
    hidden = next((path for path, part in model.named_modules() if is_opaque(part)), None)
    if hidden is not None:
        raise WhycamError(
            f"{what} of the model, and {hidden!r} is a TorchScript or exported program, which cannot be inspected: "
            "put the nn.Module it was made from in its place"
        )


def _is_exported(module: nn.Module) -> bool:
    return isinstance(module, torch.fx.GraphModule) and hasattr(module, "_guards_fn")


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers.

    Raises:
        WhycamError: the model is a TorchScript or ``torch.export`` program, inside which no hook is called.
    """
    if not isinstance(model, nn.Module):
        raise WhycamError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    if _is_script(model):
        raise WhycamError("a TorchScript module cannot be inspected: pass the nn.Module it was made from")
    inner = wrapped_by(model)
    if inner is not None:
        return unwrapped(inner)
    if _is_exported(model):
        raise WhycamError("a torch.export program cannot be inspected: pass the nn.Module it was made from")
    return model
