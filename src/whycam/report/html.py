"""The report: one self-contained HTML file, or, beyond the size budget, the same page with chunks beside it."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whycam.errors import missing_extra
from whycam.files import write_bytes, writing
from whycam.report.charts import reliability_bars, training_charts
from whycam.report.notes import READING
from whycam.report.payload import Payload
from whycam.report.verdict import heat_levels, judge, manifest_rows

if TYPE_CHECKING:
    from whycam.study.folder import Study

BUDGET = 10_000_000
"""Bytes up to which a report is one file."""
SCRIPTS = (
    "data.js", "colour.js", "words.js", "state.js", "matrix.js", "gallery.js", "detail.js", "patterns.js",
    "controls.js", "export.js", "keyboard.js", "main.js",
)  # fmt: skip
MATRIX_LIMIT = 120
"""Classes beyond this are not all shown in the matrix; the page says so."""


def write_report(study: Study, path: Path, *, budget: int = BUDGET) -> Path:
    """Write a study's report.

    Args:
        study: the study to show; nothing else is read.
        path: the HTML file to write.
        budget: bytes the one file may take. A larger report keeps its maps and images in ``<name>_files`` beside the
            file; the page loads the pieces it shows from there and is otherwise the same.

    Returns:
        ``path``.

    Raises:
        WhycamError: the study's files contradict each other, or ``path`` cannot be written.
    """
    payload = Payload(study)
    core = payload.core()
    folder = path.with_name(f"{path.stem}_files")
    written: list[Path] = []
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        inline: list[str] = []
        entries: list[dict[str, Any]] = []
        size = len(_json(core))
        for chunk in payload.chunks():
            content = _json(chunk.content)
            entries.append({"start": chunk.start, "stop": chunk.stop, "src": None})
            if not written and size + len(content) <= budget:
                inline.append(content)
                size += len(content)
                continue
            # The budget is passed: all chunks, those kept so far too, go beside the page.
            written += [_write_chunk(folder, entries, number, text) for number, text in enumerate(inline)]
            inline.clear()
            written.append(_write_chunk(folder, entries, len(entries) - 1, content))
        core["chunks"] = entries
        write_bytes(path, _render(payload, core, inline).encode())
    _remove_stale(folder, written)
    return path


def _write_chunk(folder: Path, entries: list[dict[str, Any]], number: int, content: str) -> Path:
    # Named by content: a page left by an interrupted run never meets another run's chunk.
    name = f"{number:04d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.js"
    folder.mkdir(exist_ok=True)
    write_bytes(folder / name, f"whycam.addChunk({number},{content});\n".encode())
    entries[number]["src"] = f"{folder.name}/{name}"
    return folder / name


def _remove_stale(folder: Path, keep: Iterable[Path]) -> None:
    """Delete chunks of earlier reports, and nothing else."""
    kept = set(keep)
    if folder.is_dir():
        for old in folder.glob("[0-9][0-9][0-9][0-9]-????????????.js"):
            if old not in kept:
                old.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def _json(value: Any) -> str:
    """JSON that is inert inside a script element and as a script: no markup, no line separators, no NaN."""
    out = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """A file of the front end."""
    return (files("whycam.report") / "assets" / name).read_text(encoding="utf-8")


def _script() -> str:
    parts = "\n".join(asset(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _render(payload: Payload, core: dict[str, Any], inline: list[str]) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_extra("jinja2", "study", "the report") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script, style = _script(), asset("report.css")
    paged = bool(core["chunks"]) and not inline
    policy = "; ".join([
        "default-src 'none'",
        "img-src data: blob:", f"style-src {_hash(style)}", "base-uri 'none'", "form-action 'none'",
        # The page's own script may add the chunk files beside it; a single file loads nothing at all.
        f"script-src {_hash(script)}" + (" 'strict-dynamic'" if paged else ""),
    ])  # fmt: skip
    manifest, metrics = payload.manifest, payload.metrics
    shown = _matrix_classes(metrics["confusion"])
    confusion = [[metrics["confusion"][i][j] for j in shown] for i in shown]
    history = manifest["model"].get("training", {}).get("history") or []
    return environment.from_string(asset("template.html")).render(
        policy=policy, style=style, script=script, data=_json(core), inline=inline, paged=paged,
        folder=core["chunks"][0]["src"].split("/")[0] if paged else "",
        manifest=manifest, metrics=metrics, verdict=judge(payload), classes=payload.classes, shown=shown,
        confusion=confusion, levels=heat_levels(confusion), bars=reliability_bars(metrics["reliability"]),
        charts=training_charts(history), history=history, explained=payload.explained(), errors=len(payload.ids),
        methods=core["methods"], rows=manifest_rows(manifest), reading=READING,
        whole=json.dumps(manifest, indent=1, ensure_ascii=False, default=str),
    )  # fmt: skip


def _matrix_classes(confusion: list[list[int]]) -> list[int]:
    """The classes that the matrix shows: all, or the ``MATRIX_LIMIT`` with the most errors."""
    k = len(confusion)
    if k <= MATRIX_LIMIT:
        return list(range(k))
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    wrong = [sum(row) + columns[i] - 2 * row[i] for i, row in enumerate(confusion)]
    return sorted(sorted(range(k), key=lambda i: -wrong[i])[:MATRIX_LIMIT])
