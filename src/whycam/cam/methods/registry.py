"""The methods by name: what each needs and where it was published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from whycam.errors import WhycamError
from whycam.suggest import near_misses


@dataclass(frozen=True)
class LayerTrace:
    """What a method sees of one layer for one target.

    Attributes:
        activations: (B, C, h, w), at least float32.
        gradients: (B, C, h, w), ∂score/∂activations; empty (0 elements) where the method does not need them.
        logits: (B, K).
        scores: (B,), the target's.
    """

    activations: Tensor
    gradients: Tensor
    logits: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Method:
    """A map-making rule: a pure function and what is to be known about it.

    Attributes:
        name: in lower case without separators, ``gradcam``.
        title: as people write it, ``Grad-CAM``.
        summary: one line.
        paper: where it was published.
        function: `LayerTrace` → (B, h, w) signed map at the layer's own resolution.
        needs_gradients: whether a backward pass is needed.
    """

    name: str
    title: str
    summary: str
    paper: str
    function: Callable[[LayerTrace], Tensor]
    needs_gradients: bool = True

    def __call__(self, trace: LayerTrace) -> Tensor:
        """Compute the signed map."""
        return self.function(trace)

    def __reduce__(self) -> tuple[object, ...]:
        # A registered function cannot be pickled by reference: its module's name for it is this object.
        if METHODS.get(self.name) is self:
            return (_registered, (self.name,))
        return super().__reduce__()  # type: ignore[return-value]


MethodLike = str | Method
METHODS: dict[str, Method] = {}


def method(
    title: str, *, paper: str, needs_gradients: bool = True
) -> Callable[[Callable[[LayerTrace], Tensor]], Method]:
    """Register a function as a method; its name is the title's, its summary the docstring's first line.

    Raises:
        WhycamError: the name is taken.
    """

    def register(function: Callable[[LayerTrace], Tensor]) -> Method:
        name = normalised(title)
        if name in METHODS:
            raise WhycamError(f"a method named {name!r} exists already ({METHODS[name].title})")
        summary = (function.__doc__ or title).strip().splitlines()[0]
        METHODS[name] = Method(name, title, summary, paper, function, needs_gradients)
        return METHODS[name]

    return register


def _registered(name: str) -> Method:
    return METHODS[name]


def normalised(name: str) -> str:
    """``Grad-CAM`` and ``grad_cam`` are ``gradcam``; ``++`` stays."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def resolve_methods(methods: Sequence[MethodLike] | MethodLike) -> tuple[Method, ...]:
    """Look the methods up by name, ignoring case, ``-`` and ``_``.

    Raises:
        WhycamError: none is given, one is unknown (near misses are listed), or one is given twice.
    """
    given = [methods] if isinstance(methods, str | Method) else list(methods)
    resolved: dict[str, Method] = {}
    for entry in given:
        found = entry if isinstance(entry, Method) else METHODS.get(normalised(entry))
        if found is None:
            raise WhycamError(f"unknown method {entry!r}{near_misses(normalised(str(entry)), METHODS)}")
        if found.name in resolved:
            raise WhycamError(f"method {found.title} is given twice")
        resolved[found.name] = found
    if not resolved:
        raise WhycamError(f"no method is given; there are {', '.join(METHODS)}")
    return tuple(resolved.values())
