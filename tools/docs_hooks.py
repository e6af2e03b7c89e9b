"""MkDocs hooks: they add generated tables and the outputs of Python blocks to the pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from docs_blocks import OUTPUT, run_python
from docs_tables import TABLES, functions_named_like_module

FOREIGN = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=.https?:[^>]*>|<link\b[^>]*stylesheet[^>]*https?:[^>]*>")
"""HTML that makes the reader's browser load something from another server."""

SAME_NAME = re.compile(r"<!-- functions named like their module in ([\w.]+) -->")


def on_page_markdown(markdown: str, *, page: Any, **_rest: Any) -> str:
    """Fill in the generated parts of a page. MkDocs calls this with each page's source and renders the result."""
    if OUTPUT in markdown:
        markdown = with_outputs(markdown, page.file.src_uri)
    for marker, table in TABLES.items():
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return SAME_NAME.sub(lambda match: functions_named_like_module(match[1]), markdown)


def with_outputs(markdown: str, page: str) -> str:
    """Run the page's Python blocks and replace each output marker by the output of the block above it."""
    result, position = "", 0
    for end, printed in run_python(markdown, page).items():
        result += markdown[position:end]
        position = end
        if markdown[end:].lstrip("\n").startswith(OUTPUT):
            position = markdown.index(OUTPUT, end) + len(OUTPUT)
            result += f"\n\n```text\n{printed.rstrip()}\n```"
    result += markdown[position:]
    if OUTPUT in result:
        raise ValueError(f"{page}: a line '{OUTPUT}' does not follow a Python block")
    return result


def on_post_page(output: str, *, page: Any, **_rest: Any) -> str:
    """Refuse a page that loads something from another server. MkDocs calls this with each finished page."""
    if foreign := FOREIGN.search(output):
        raise ValueError(f"{page.file.src_uri}: the page would load {foreign[0]}")
    return output
