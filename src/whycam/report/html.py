"""The report: one self-contained HTML file, or, beyond the size budget, the same page with chunks beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whycam.files import write_bytes, writing
from whycam.report.charts import reliability_bars, training_charts
from whycam.report.frontend import asset, bundle, inert_json, policy, render
from whycam.report.notes import READING
from whycam.report.payload import Payload
from whycam.report.verdict import heat_levels, judge, manifest_rows

if TYPE_CHECKING:
    from whycam.study.folder import Study

BUDGET = 10_000_000
"""Bytes up to which a report is one file."""
SCRIPTS = (
    "data.js", "colour.js", "words.js", "state.js", "matrix.js", "gallery.js", "evidence.js", "detail.js",
    "patterns.js", "theme.js", "controls.js", "export.js", "keyboard.js", "shortcuts.js", "main.js",
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
        size = len(inert_json(core))
        for chunk in payload.chunks():
            content = inert_json(chunk.content)
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


def _render(payload: Payload, core: dict[str, Any], inline: list[str]) -> str:
    script, style = bundle(SCRIPTS), asset("report.css")
    paged = bool(core["chunks"]) and not inline
    manifest, metrics = payload.manifest, payload.metrics
    shown = _matrix_classes(metrics["confusion"])
    confusion = [[metrics["confusion"][i][j] for j in shown] for i in shown]
    history = manifest["model"].get("training", {}).get("history") or []
    return render(
        "template.html",
        # The page's own script may add the chunk files beside it; a single file loads nothing at all.
        policy=policy(script, style, script_extra=" 'strict-dynamic'" if paged else ""),
        live=False, style=style, script=script, data=inert_json(core), inline=inline, paged=paged,
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
