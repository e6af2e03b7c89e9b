"""Find the fenced blocks of a documentation page and run the Python blocks, so that readers copy code that works."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = "<!-- output -->"
"""A line in a page. The site's build replaces it by the output of the Python block above it."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word after the fence. ``python`` is run, ``bash`` is checked, other languages are only shown.
        code: the text inside, without the indentation of the fence.
        line: the number of the code's first line in the page, counted from 1.
        end: the offset in the page where the closing fence ends.
    """

    language: str
    code: str
    line: int
    end: int


def blocks(text: str) -> list[Block]:
    """Return all fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, text.count("\n", 0, match.start("code")) + 1, match.end()))
    return found


def run_python(text: str, page: str) -> dict[int, str]:
    """Run a page's Python blocks in order, in one namespace, in a new empty folder.

    Args:
        text: the page's Markdown.
        page: the page's name, for tracebacks.

    Returns:
        The output of each block, by the offset where the block ends.
    """
    printed: dict[int, str] = {}
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with _empty_folder(), _registry_as_before():
        for block in blocks(text):
            if block.language != "python":
                continue
            code = compile("\n" * (block.line - 1) + block.code, page, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed[block.end] = output.getvalue()
    return printed


def commands(text: str) -> list[list[str]]:
    """Return the command lines of a page's ``bash`` blocks, split into words, without comments and empty lines."""
    found = []
    for block in blocks(text):
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append(words)
    return found


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _registry_as_before() -> Iterator[None]:
    """Undo registrations: a page may register a method or a metric, and other pages must not see it."""
    from whycam.cam.methods import METHODS
    from whycam.comparison import METRICS

    before = dict(METHODS), dict(METRICS)
    try:
        yield
    finally:
        for registry, known in zip((METHODS, METRICS), before, strict=True):
            registry.clear()
            registry.update(known)
