"""Markdown that is generated from the code: tables of methods, measures and recipes, and the command-line reference."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import whycam
from whycam.cam.methods import METHODS
from whycam.cli.main import build_parser
from whycam.comparison import METRICS
from whycam.training import RECIPES, Recipe

API = Path(__file__).resolve().parent.parent / "docs" / "api"


def methods_table() -> str:
    """Return the table of all registered methods: name, title, summary, needs, paper."""
    rows = [
        (f"`{name}`", method.title, method.summary, _needs(method), _linked(method.paper))
        for name, method in sorted(METHODS.items())
    ]
    return _table(("Name", "Method", "Map", "Needs", "Paper"), rows)


def metrics_table() -> str:
    """Every registered metric: name, what it is, which direction is better, where it was published."""
    rows = [
        (f"`{name}`", known.summary, f"{known.better} is better", _linked(known.paper))
        for name, known in METRICS.items()
    ]
    return _table(("Name", "What it is", "Better direction", "Paper"), rows)


def recipes_table() -> str:
    """Return the table of whycam's recipes, with the fields in which they differ."""
    recipes = {name: recipe.to_dict() for name, recipe in RECIPES.items()}
    differing = [
        field
        for field in Recipe().to_dict()
        if field != "name" and len({_text(r[field]) for r in recipes.values()}) > 1
    ]
    rows = [(f"`{field}`", *(_code(values[field]) for values in recipes.values())) for field in differing]
    return _table(("Field", *(f"`{name}`" for name in recipes)), rows)


def fields_table() -> str:
    """Return the table of all fields of a recipe: name, default, and meaning from the docstring of `Recipe`."""
    defaults = Recipe().to_dict()
    meanings = attributes_of(Recipe)
    rows = [(f"`{field}`", _code(value), _sentence(meanings[field])) for field, value in defaults.items()]
    return _table(("Field", "Default", "Meaning"), rows)


def attributes_of(cls: type) -> dict[str, str]:
    """Parse the ``Attributes:`` section of a Google-style docstring into name → text."""
    section = re.search(r"^ *Attributes:\n(.*?)(?=^ *\w+:\n|\Z)", cls.__doc__ or "", re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError(f"the docstring of {cls.__name__} has no Attributes section")
    found: dict[str, str] = {}
    indent = len(section[1]) - len(section[1].lstrip(" "))
    for line in section[1].splitlines():
        entry = re.match(r"(\w+(?:, \w+)*): (.*)", line[indent:])
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif found and line.strip():
            for name in names:
                found[name] += " " + line.strip()
    return found


def command_line_reference() -> str:
    """Return the reference of all commands: arguments, options, example."""
    parser = build_parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help for choice in subparsers._choices_actions}
    parts = [_table(("Command", "What it does"), [(f"[`{n}`](#{n})", s) for n, s in summaries.items()])]
    for name, command in subparsers.choices.items():
        parts.append(f"## {name}\n\n{command.description}\n")
        example = (command.epilog or "").removeprefix("example: ")
        if example:
            parts.append(f"```bash\n{example}\n```\n")
        rows = [(_usage(action), action.help) for action in command._actions if _shown(action)]
        if rows:
            parts.append(_table(("Argument", "Meaning"), rows))
    return "\n".join(parts)


def public_names() -> str:
    """Return the table of all names of ``import whycam``: first docstring line, and a link if a page describes it."""
    rows = []
    for name, home in sorted(whycam._HOMES.items()):
        text = (getattr(whycam, name).__doc__ or "").strip().splitlines()[0]
        target = f"{home}.{name}.{name}" if _is_module(f"{home}.{name}") else f"{home}.{name}"
        described = home == "whycam.errors" or (API / f"{home.removeprefix('whycam.')}.md").is_file()
        rows.append((f"[`{name}`][{target}]" if described else f"`{name}`", text, f"`{home}`"))
    return _table(("Name", "What it is", "Module"), rows)


def functions_named_like_module(package: str) -> str:
    """Return mkdocstrings directives for functions named like their module: the package's directive omits them."""
    names = import_module(package).__all__
    return "".join(f"\n::: {package}.{name}.{name}\n" for name in names if _is_module(f"{package}.{name}"))


TABLES = {
    "<!-- public names -->": public_names,
    "<!-- methods -->": methods_table,
    "<!-- metrics -->": metrics_table,
    "<!-- recipes -->": recipes_table,
    "<!-- recipe fields -->": fields_table,
    "<!-- commands -->": command_line_reference,
}
"""Marker in a page's source → the function that generates the text to put there."""


def _is_module(path: str) -> bool:
    try:
        return find_spec(path) is not None
    except ModuleNotFoundError:  # the parent is a module, not a package
        return False


def _needs(method: Any) -> str:
    needs = getattr(method, "needs", None)
    if needs is None:
        return "gradients" if method.needs_gradients else "activations"
    return needs if isinstance(needs, str) else ", ".join(sorted(map(str, needs)))


def _shown(action: argparse.Action) -> bool:
    return action.dest != "help" and action.help != argparse.SUPPRESS


def _usage(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    values = {None: metavar, "+": f"{metavar} …", "*": f"[{metavar} …]", "?": f"[{metavar}]", 0: ""}.get(action.nargs)
    if action.option_strings:
        return f"`{' '.join(filter(None, (action.option_strings[-1], values)))}`"
    return f"`{values}`"


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def _sentence(text: str) -> str:
    text = _linked(text)
    return text[0].upper() + text[1:]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _code(value: Any) -> str:
    return f"`{_text(value)}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[(cell or "").replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
