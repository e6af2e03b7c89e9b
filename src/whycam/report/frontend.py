"""The front end's pieces put into a page: scripts, styles, inert data and the policy that fits them."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from whycam.errors import missing_extra


def asset(name: str) -> str:
    """A file of the front end."""
    return (files("whycam.report") / "assets" / name).read_text(encoding="utf-8")


def bundle(names: Sequence[str]) -> str:
    """Script files as one script, in a scope of its own."""
    parts = "\n".join(asset(name) for name in names)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def inert_json(value: Any) -> str:
    """JSON that is inert inside a script element and as a script: no markup, no line separators, no NaN."""
    out = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def source_hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(script: str, style: str, *extra: str, script_extra: str = "") -> str:
    """A content security policy that lets a page run its own script and style and show its own pictures.

    Args:
        script: the page's one script.
        style: the page's one style sheet.
        extra: further directives.
        script_extra: what else ``script-src`` allows.
    """
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data: blob:",
            f"style-src {source_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            f"script-src {source_hash(script)}{script_extra}",
            *extra,
        ]
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template of the front end; everything that is not marked safe is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise missing_extra("jinja2", "study", "the report") from error
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
