"""The registry of methods: their names, options, needs and papers."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, wraps
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

from torch import Tensor

from whycam._lazy import renamed_attribute
from whycam.cam.passes.trace import LayerTrace
from whycam.cam.targets.classification import Target
from whycam.errors import WhycamError, near_misses
from whycam.options import checked, options_of

Need = Literal["gradients", "hvp", "reruns", "outputs"]
Scope = Literal["layer", "layers", "input"]
Function = Callable[..., Tensor]

ENTRY_POINTS = "whycam.methods"


@dataclass(frozen=True)
class Method:
    """A method: a pure function that computes a map, and its description.

    Attributes:
        name: in lower case without separators, ``gradcam``; with options, ``fem(k=3)``.
        title: as in the paper, ``Grad-CAM``.
        summary: one line.
        paper: where it was published.
        function: scope "layer": `LayerTrace` → (B, h, w) signed map at the layer's own resolution; "layers": a list of
            `LayerTrace`, one per layer → (B, h, w); "input": `LayerTrace` of the images themselves → (B, H, W).
        needs: "gradients" (a backward pass), "hvp" (a second one), "reruns" (further passes of its own),
            "outputs" (gradients at the outputs of modules; the first pass then keeps its graph).
        scope: the input of ``function``: one layer, all layers, or the images.
        retarget: target → target that the method explains instead; None: the same target.
        per_channel: whether the map is a sum over channels that is computed with `LayerTrace.weighted`, so that it can
            return one map per channel.
        options: keyword options that differ from the function's defaults.
    """

    name: str
    title: str
    summary: str
    paper: str
    function: Function
    needs: frozenset[Need] = frozenset({"gradients"})
    scope: Scope = "layer"
    retarget: Callable[[Target], Target] | None = None
    per_channel: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    has_terms = renamed_attribute("has_terms", "per_channel")

    @property
    def needs_gradients(self) -> bool:
        """Whether a backward pass is needed."""
        return "gradients" in self.needs or "hvp" in self.needs

    @property
    def defaults(self) -> dict[str, Any]:
        """All options with the function's defaults."""
        return options_of(self.function)

    def __call__(self, trace: LayerTrace | Sequence[LayerTrace]) -> Tensor:
        """Compute the signed map."""
        return self.function(trace, **dict(self.options))

    def using(self, **options: Any) -> Method:
        """This method with options changed; ``METHODS["fem"].using(k=3)`` is also written ``"fem(k=3)"``.

        Raises:
            WhycamError: there is no such option, or the value is not allowed.
        """
        merged = tuple((dict(self.options) | checked(self.title, self.function, options)).items())
        base = self.name.partition("(")[0]
        return replace(self, name=written(base, dict(merged)), options=merged)

    def __reduce__(self) -> tuple[object, ...]:
        # A registered function cannot be pickled by reference: in its module, its name refers to the `Method`.
        base = METHODS.get(self.name.partition("(")[0])
        if base is not None and base.function is self.function:
            return (_registered, (base.name, self.options))
        return super().__reduce__()  # type: ignore[return-value]


MethodLike = str | Method
METHODS: dict[str, Method] = {}
COMBINATORS: dict[str, Callable[..., Method]] = {}
"""Functions from a method to a method: ``"augmented(gradcam)"`` is ``COMBINATORS["augmented"]("gradcam")``."""


def method(
    title: str,
    *,
    paper: str,
    needs: Iterable[Need] = ("gradients",),
    scope: Scope = "layer",
    retarget: Callable[[Target], Target] | None = None,
    per_channel: bool = False,
    has_terms: bool = False,
) -> Callable[[Function], Method]:
    """Register a function as a method. Its name comes from the title, its summary is the docstring's first line.

    The function's keyword parameters are the method's options; their annotations say which values are allowed, see
    `whycam.options`.

    Raises:
        WhycamError: the name is taken or invalid, or ``needs`` or ``scope`` is unknown.
    """
    if has_terms:
        warnings.warn("method(has_terms=True) is now method(per_channel=True)", DeprecationWarning, stacklevel=2)
        per_channel = True
    wanted: frozenset[Any] = frozenset(map(_renamed_need, (needs,) if isinstance(needs, str) else needs))
    for what, values, known in (("need", wanted, get_args(Need)), ("scope", (scope,), get_args(Scope))):
        for value in values:
            if value not in known:
                raise WhycamError(f"method {title!r}: there is no {what} {value!r}{near_misses(str(value), known)}")

    def register(function: Function) -> Method:
        name = normalized(title)
        if not name or set(name) & set("(),"):
            raise WhycamError(f"a method cannot be titled {title!r}: parentheses and commas are for its options")
        if name in COMBINATORS:
            raise WhycamError(f"{name!r} is a combinator, so a method cannot be titled {title!r}: choose another title")
        if name in METHODS:
            raise WhycamError(f"a method named {name!r} exists already ({METHODS[name].title})")
        METHODS[name] = Method(
            name, title, summary_of(function) or title, paper, function, wanted, scope, retarget, per_channel
        )
        return METHODS[name]

    return register


def _renamed_need(need: Any) -> Any:
    if need != "curvature":
        return need
    warnings.warn('the need "curvature" of a method is now "hvp"', DeprecationWarning, stacklevel=4)
    return "hvp"


def combinator(function: Callable[..., Method]) -> Callable[..., Method]:
    """Register a function from a method (and options) to a method, so that it can be used in a method's name.

    Its options are checked like those of a method.
    """
    name = normalized(function.__name__)

    @wraps(function)
    def checked_function(method: MethodLike, *values: Any, **options: Any) -> Method:
        # Positional options by name, so that they are checked too.
        positional = dict(zip(options_of(function), values, strict=False))
        if len(values) > len(positional) or positional.keys() & options.keys():
            return function(method, *values, **options)  # raises Python's own TypeError
        return function(method, **checked(name, function, positional | options))

    COMBINATORS[name] = checked_function
    return checked_function


def summary_of(function: Callable[..., Any]) -> str:
    """The first line of its docstring."""
    return next(iter((function.__doc__ or "").strip().splitlines()), "")


def written(name: str, options: Mapping[str, Any], inner: str = "") -> str:
    """A method's name with its options: ``fem(k=2.0)``, ``noisy(METHOD, n=8, sigma=0.1)``; without, the name alone."""
    arguments = ([inner] if inner else []) + [f"{option}={value!r}" for option, value in options.items()]
    return f"{name}({', '.join(arguments)})" if arguments else name


def _registered(name: str, options: tuple[tuple[str, Any], ...]) -> Method:
    return METHODS[name].using(**dict(options)) if options else METHODS[name]


def normalized(name: str) -> str:
    """Normalize a name: ``Grad-CAM`` and ``grad_cam`` become ``gradcam``; ``++`` and options in parentheses stay."""
    base, parenthesis, options = name.partition("(")
    base = base.lower().replace("-", "").replace("_", "").replace(" ", "")
    if base in COMBINATORS and parenthesis:
        inner, rest = _first_argument(options)
        options = normalized(inner.strip()) + rest
    return base + parenthesis + options


def find_method(name: str) -> Method:
    """The method of that name, which may contain options: ``"FEM(k=3)"``.

    Methods of other packages, in the entry-point group ``whycam.methods``, are found too; their modules register them
    on import.

    Raises:
        WhycamError: it is unknown (similar names are listed) or its options cannot be read.
    """
    base, _, options = normalized(str(name)).partition("(")
    if base in COMBINATORS:
        inner, rest = _first_argument(options)
        if not inner:
            raise WhycamError(f"{base} needs a method: write it like {base}(gradcam)")
        return COMBINATORS[base](find_method(inner), **_options(name, rest.removeprefix(",")))
    broken = {} if base in METHODS else load_entry_points()
    if base not in METHODS:
        if base in broken:
            raise WhycamError(f"method {name!r} is offered by a package that cannot be imported: {broken[base]}")
        raise WhycamError(f"unknown method {name!r}{near_misses(base.replace('plus', '+'), [*METHODS, *COMBINATORS])}")
    return METHODS[base].using(**_options(name, options)) if options else METHODS[base]


def canonical(name: str) -> str:
    """The name under which a method's maps are stored, for any way to write it; an unknown name is only normalized."""
    try:
        return find_method(name).name
    except WhycamError:
        return normalized(name)


@cache
def load_entry_points() -> Mapping[str, str]:
    """Import the methods of other packages; done once, at the first unknown name and for listings.

    Returns:
        Normalized name → reason, for the entry points that cannot be imported. Each gives a warning; all others work.
    """
    broken = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # whatever another package's module raises
            reason = f"{entry.value}: {type(error).__name__}: {error}"
            broken[normalized(entry.name)] = reason
            warnings.warn(f"the methods of the plugin {entry.name!r} are missing ({reason})", stacklevel=2)
    return broken


def _first_argument(text: str) -> tuple[str, str]:
    """Split after the first argument: ``"fem(k=3), n=4)"`` → ``"fem(k=3)"`` and ``", n=4)"``."""
    depth = 0
    for index, character in enumerate(text):
        if depth == 0 and character in ",)":
            return text[:index], text[index:]
        depth += (character == "(") - (character == ")")
    return text, ""


def _options(name: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        names = [keyword.arg or "" for keyword in call.keywords]
        if "" in names or len(set(names)) < len(names):  # a ** argument, or a repeated name
            raise ValueError
        return {name: ast.literal_eval(keyword.value) for name, keyword in zip(names, call.keywords, strict=True)}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise WhycamError(f"method {name!r}: its options cannot be read; write them like fem(k=3)") from error


def resolve_methods(methods: Sequence[MethodLike] | MethodLike) -> tuple[Method, ...]:
    """Look the methods up by name, ignoring case, ``-`` and ``_``.

    Raises:
        WhycamError: none is given, one is unknown (similar names are listed), or one is given twice.
    """
    members = [methods] if isinstance(methods, str | Method) or not isinstance(methods, Iterable) else list(methods)
    if not all(isinstance(member, str | Method) for member in members):
        raise WhycamError(
            f"methods are names such as 'gradcam' or whycam.cam.Method objects, or a list of them; got {methods!r}"
        )
    resolved: dict[str, Method] = {}
    for member in members:
        found = member if isinstance(member, Method) else find_method(member)
        if found.name in resolved:
            raise WhycamError(f"method {found.title} is given twice")
        resolved[found.name] = found
    if not resolved:
        raise WhycamError(f"no method is given; there are {', '.join(METHODS)}")
    return tuple(resolved.values())


def method_note(name: str) -> dict[str, str]:
    """Title, one-line description and source of a method; a method that is not registered has its name as title."""
    if name not in METHODS:
        return {"title": name, "about": "", "source": ""}
    known = METHODS[name]
    return {"title": known.title, "about": known.summary, "source": known.paper}
