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
from whycam.report.payload import Chunk, Payload
from whycam.report.road_table import BAR_WIDTH, score_table
from whycam.report.summary import heat_levels, judge, manifest_rows
from whycam.study.neighbors import SHOWN

if TYPE_CHECKING:
    from whycam.study.folder import Study

BUDGET = 10_000_000
"""Bytes up to which a report is one file."""
SCRIPTS = (
    "data.js", "relations.js", "color.js", "words.js", "state.js", "matrix.js", "gallery.js", "evidence.js",
    "neighbors.js", "detail.js", "means.js", "patterns.js", "clusters.js", "suspects.js", "theme.js", "controls.js",
    "export.js", "keyboard.js", "shortcuts.js", "main.js",
)  # fmt: skip
_FRAME = 150_000  # about what the page takes without its data: markup, style, script, the manifest
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
    pieces = ChunkWriter(path.with_name(f"{path.stem}_files"), budget - len(inert_json(core)) - _FRAME)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for chunk in payload.chunks():
            pieces.add(chunk)
        core["relations"]["pictured"] = _add_neighbors(pieces, payload)
        core["chunks"], core["album"] = pieces.entries["chunk"], pieces.entries["album"]
        write_bytes(path, _render(payload, core, pieces.inline).encode())
    _remove_stale(pieces.folder, pieces.written)
    return path


class ChunkWriter:
    """Chunks inside the page, or, once the room is used up, all of them in files beside it.

    Args:
        folder: where the files go.
        room: bytes that the page has for them.
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self.inline: list[str] = []
        self.written: list[Path] = []
        self.entries: dict[str, list[dict[str, Any]]] = {"chunk": [], "album": []}

    @property
    def fits(self) -> bool:
        """Whether the page still holds everything."""
        return not self.written

    def add(self, chunk: Chunk, kind: str = "chunk") -> None:
        """Add a chunk of errors or, after all of those, one of the album of neighbors."""
        content = inert_json(chunk.content)
        self.entries[kind].append({"start": chunk.start, "stop": chunk.stop, "src": None})
        if self.fits and len(content) <= self.room:
            self.inline.append(content)
            self.room -= len(content)
            return
        # The budget is passed: all chunks, those kept so far too, go beside the page.
        for number, text in enumerate(self.inline):
            self._write(number, text)
        self.inline.clear()
        self._write(len(self.written), content)

    def add_if_all_fit(self, chunks: Iterable[Chunk], kind: str) -> bool:
        """Add chunks to the page, or, if not all of them fit into it, none."""
        found: list[Chunk] = []
        room = self.room
        for chunk in chunks:
            room -= len(inert_json(chunk.content))
            if room < 0:
                return False
            found.append(chunk)
        for chunk in found:
            self.add(chunk, kind)
        return True

    def _write(self, number: int, content: str) -> None:
        # Named by content: a page left by an interrupted run never meets another run's chunk.
        name = f"{number:04d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.js"
        self.folder.mkdir(exist_ok=True)
        write_bytes(self.folder / name, f"whycam.addChunk({number},{content});\n".encode())
        entries = [*self.entries["chunk"], *self.entries["album"]]
        entries[number]["src"] = f"{self.folder.name}/{name}"
        self.written.append(self.folder / name)


def _add_neighbors(pieces: ChunkWriter, payload: Payload) -> int:
    """Add the neighbors' pictures and return up to which rank; the page names those that it has no picture of.

    One file holds as many ranks as its budget has room for, but always the nearest: if they do not fit, the report is
    paged, and then it holds all.
    """
    for rank in range(1, len(payload.relations.starts)):
        if pieces.fits and pieces.add_if_all_fit(payload.album(rank), "album"):
            continue
        if pieces.fits and rank > 1:
            return rank - 1
        for chunk in payload.album(rank):
            pieces.add(chunk, "album")
    return SHOWN


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
        neighbors=not core["relations"]["why"], split=manifest["data"]["split"],
        scores=score_table(payload.study), bar_width=BAR_WIDTH,
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
