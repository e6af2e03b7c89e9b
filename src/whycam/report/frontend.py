"""Helpers that assemble a page of the front end: scripts, styles, inert data and the matching security policy."""

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
    """Join script files into one script with its own scope."""
    parts = "\n".join(asset(name) for name in names)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def inert_json(value: Any) -> str:
    """JSON that cannot end its script element or act as markup: ``<``, ``>`` and ``&`` are escaped, NaN is refused."""
    out = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def source_hash(text: str) -> str:
    """The source expression of an inline script or style in a content security policy."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(script: str, style: str, *extra: str, script_extra: str = "") -> str:
    """A content security policy that allows a page's own script, style and images, and nothing else.

    Args:
        script: the page's only script.
        style: the page's only style sheet.
        extra: further directives.
        script_extra: further sources of ``script-src``, with a leading space.
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
    """Fill in a template of the front end. Values that are not marked safe are escaped.

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
