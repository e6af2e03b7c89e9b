"""What grad-cam 1.5.7 offers, read from the two lists beside this file, and what of it is missing here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from torch import nn

from whycam.compat import pytorch_grad_cam as compat
from whycam.compat.pytorch_grad_cam._methods import FormulaCAM


def lines_of(name):
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return [line.split() for line in lines if line[0] != "#"]


LINES = lines_of("names.txt")
CONSTRUCTORS = lines_of("constructors.txt")
# Hook functions and model surgery that have no place here, and the parts of a sparse matrix that is never built.
LEFT_OUT = {
    "save_activation", "save_gradient", "set_ablation_layers", "unset_ablation_layers",
    "set_ablation_layer_batch_indices", "trim_ablation_layer_batch_indices", "add_offset_to_indices",
    "setup_sparse_system",
}  # fmt: skip


def absent(line):
    """What of a line of names.txt is not here."""
    try:
        found = importlib.import_module(f"whycam.compat.{line[0]}")
        for name in line[1:2]:
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return line[:2]
    return [name for name in line[2:] if name not in LEFT_OUT and not callable(getattr(found, name, None))]


def rows():
    """The classes of the table."""
    modules()  # the table is whole once everything is imported
    return sorted(FormulaCAM.__subclasses__(), key=lambda cls: (cls.__module__, cls.__name__))


def modules():
    """All public modules."""
    names = [compat.__name__, *(found.name for found in pkgutil.walk_packages(compat.__path__, f"{compat.__name__}."))]
    return [importlib.import_module(name) for name in names if "._" not in name]


def unlisted(lines):
    """Public classes that no line names: of the table, and of all modules."""
    listed = {(f"whycam.compat.{line[0]}", line[1]) for line in lines if len(line) > 1}
    defined = {
        (module.__name__, name)
        for module in modules()
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    return sorted((defined | {(cls.__module__, cls.__name__) for cls in rows()}) - listed)


def parameters(cls):
    """As constructors.txt has them."""
    if cls.__init__ in (object.__init__, nn.Module.__init__):
        return []
    return [_written(parameter) for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]]


def _written(parameter):
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    if parameter.default is parameter.empty:
        return parameter.name
    plain = parameter.default is None or isinstance(parameter.default, bool | int | float | str)
    return f"{parameter.name}={repr(parameter.default) if plain else '…'}"
