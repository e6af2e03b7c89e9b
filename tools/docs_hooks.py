"""What `make docs` adds to the pages: generated tables, and what their Python blocks print."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from docs_blocks import OUTPUT, run_python
from docs_tables import TABLES, namesakes

FOREIGN = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=.https?:[^>]*>|<link\b[^>]*stylesheet[^>]*https?:[^>]*>")
"""What would make a reader's browser ask somebody else."""

NAMESAKES = re.compile(r"<!-- namesakes of ([\w.]+) -->")


def on_page_markdown(markdown: str, *, page: Any, **_rest: Any) -> str:
    """Called by MkDocs with each page's source; returns what is rendered instead."""
    if OUTPUT in markdown:
        markdown = with_outputs(markdown, page.file.src_uri)
    for marker, table in TABLES.items():
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return NAMESAKES.sub(lambda match: namesakes(match[1]), markdown)


def with_outputs(markdown: str, page: str) -> str:
    """Run the page and put each block's output where a marker follows it."""
    result, position = "", 0
    for end, printed in run_python(markdown, page).items():
        result += markdown[position:end]
        position = end
        if markdown[end:].lstrip("\n").startswith(OUTPUT):
            position = markdown.index(OUTPUT, end) + len(OUTPUT)
            result += f"\n\n```text\n{printed.rstrip()}\n```"
    result += markdown[position:]
    if OUTPUT in result:
        raise ValueError(f"{page}: a line '{OUTPUT}' follows no Python block")
    return result


def on_post_page(output: str, *, page: Any, **_rest: Any) -> str:
    """Called with each finished page: it must not load anything from elsewhere."""
    if foreign := FOREIGN.search(output):
        raise ValueError(f"{page.file.src_uri}: the page would load {foreign[0]}")
    return output
