"""The fenced blocks of a documentation page: found, and for Python run, so that what a reader copies works."""

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
"""A line that the site's build replaces by what the Python block before it prints."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: what follows the fence: ``python`` is run, ``bash`` is checked, all else is only shown.
        code: the text inside, without the fence's indentation.
        line: the line of the page that the code begins on, from 1.
        end: the offset in the page of the end of the closing fence.
    """

    language: str
    code: str
    line: int
    end: int


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, text.count("\n", 0, match.start("code")) + 1, match.end()))
    return found


def run_python(text: str, page: str) -> dict[int, str]:
    """Run a page's Python blocks in order, in one namespace and an empty folder of their own.

    Args:
        text: the page.
        page: its name; a traceback points to its lines.

    Returns:
        What each block printed, by the offset of its end in the page.
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
    """The command lines of a page's ``bash`` blocks, as words; comments and empty lines are left out."""
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
    """A page may register a method or a metric as an example; other pages must not see it."""
    from whycam.cam.methods import METHODS
    from whycam.comparison import METRICS

    before = dict(METHODS), dict(METRICS)
    try:
        yield
    finally:
        for registry, known in zip((METHODS, METRICS), before, strict=True):
            registry.clear()
            registry.update(known)
