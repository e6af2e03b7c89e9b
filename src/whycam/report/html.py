"""The report: one self-contained HTML file, or, beyond the size budget, the same page with chunks beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whycam.files import write_bytes, writing
from whycam.report.frontend import asset, bundle, inert_json, policy, render
from whycam.report.payload import Chunk, Payload
from whycam.report.sections import SECTIONS
from whycam.study.neighbors import SHOWN

if TYPE_CHECKING:
    from whycam.study.folder import Study

BUDGET = 10_000_000
"""Bytes up to which a report is one file."""
SCRIPTS_BEFORE = ("data.js", "relations.js", "color.js", "words.js", "state.js", "theme.js", "keyboard.js")
SCRIPTS_AFTER = ("export.js", "shortcuts.js", "main.js")
_FRAME = 150_000  # bytes of the page without its data, about: markup, style, script, the manifest


def write_report(study: Study, path: Path, *, budget: int = BUDGET, payload: Payload | None = None) -> Path:
    """Write a study's report.

    Args:
        study: the study to show; nothing else is read.
        path: the HTML file to write.
        budget: bytes that the one file may take. A larger report keeps its maps and images in ``<name>_files`` beside
            the file; the page loads the chunks that it shows from there and is otherwise the same.
        payload: the study's, if the caller has built it already.

    Returns:
        ``path``.

    Raises:
        WhycamError: the study's files contradict each other, or ``path`` cannot be written.
    """
    payload = payload or Payload(study)
    core = payload.core()
    for section in SECTIONS:
        core |= section.data(payload)
    chunks = ChunkWriter(path.with_name(f"{path.stem}_files"), budget - len(inert_json(core)) - _FRAME)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for chunk in payload.chunks():
            chunks.add(chunk)
        core["relations"]["pictured"] = _add_neighbors(chunks, payload)
        core |= chunks.entries
        write_bytes(path, render("template.html", page=Page(payload, core, chunks), live=False).encode())
    _remove_stale(chunks.folder, chunks.written)
    return path


class ChunkWriter:
    """Keeps chunks for the page; once its room is used up, writes all of them into files beside it.

    Args:
        folder: the folder of the files.
        room: bytes that the page has for chunks.

    Attributes:
        inline: the chunks for the page, as JSON.
        written: the files.
        entries: what the data block says of the chunks: "chunks" of errors, then "neighborImages".
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self.inline: list[str] = []
        self.written: list[Path] = []
        self.entries: dict[str, list[dict[str, Any]]] = {"chunks": [], "neighborImages": []}

    @property
    def fits(self) -> bool:
        """Whether the page still holds all chunks."""
        return not self.written

    def add(self, chunk: Chunk, kind: str = "chunks") -> None:
        """Add a chunk; those of neighbors come after all chunks of errors."""
        content = inert_json(chunk.content)
        self.entries[kind].append({"start": chunk.start, "stop": chunk.stop, "src": None})
        if self.fits and len(content) <= self.room:
            self.inline.append(content)
            self.room -= len(content)
            return
        # The room is used up: all chunks go into files, those kept so far first.
        for number, text in enumerate(self.inline):
            self._write(number, text)
        self.inline.clear()
        self._write(len(self.written), content)

    def add_if_all_fit(self, chunks: Iterable[Chunk], kind: str) -> bool:
        """Add chunks to the page if all of them fit, otherwise none."""
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
        # Named by content, so that a page of an interrupted run never loads a chunk of another run.
        name = f"{number:04d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.js"
        self.folder.mkdir(exist_ok=True)
        write_bytes(self.folder / name, f"whycam.addChunk({number},{content});\n".encode())
        entries = [entry for kind in self.entries.values() for entry in kind]
        entries[number]["src"] = f"{self.folder.name}/{name}"
        self.written.append(self.folder / name)


def _add_neighbors(chunks: ChunkWriter, payload: Payload) -> int:
    """Add the neighbors' images and return up to which rank. The page names the neighbors that it has no image of.

    A page of one file holds as many ranks as the budget has room for. If not even the nearest fit, the report gets
    chunk files, and these hold all ranks.
    """
    for rank in range(1, len(payload.relations.starts)):
        if chunks.fits and chunks.add_if_all_fit(payload.neighbor_images(rank), "neighborImages"):
            continue
        if chunks.fits and rank > 1:
            return rank - 1
        for chunk in payload.neighbor_images(rank):
            chunks.add(chunk, "neighborImages")
    return SHOWN


def _remove_stale(folder: Path, keep: Iterable[Path]) -> None:
    """Delete the chunk files of earlier reports, and nothing else."""
    kept = set(keep)
    if folder.is_dir():
        for old in folder.glob("[0-9][0-9][0-9][0-9]-????????????.js"):
            if old not in kept:
                old.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


class Page:
    """The context of the page's templates."""

    def __init__(self, payload: Payload, core: dict[str, Any], chunks: ChunkWriter) -> None:
        self.manifest, self.metrics = payload.manifest, payload.metrics
        views = {section.name: section.view(payload) for section in SECTIONS}
        self.views = {name: view for name, view in views.items() if view is not None}
        self.sections = [section for section in SECTIONS if section.name in self.views]
        scripts = [name for section in SECTIONS for name in section.scripts]
        styles = [name for section in SECTIONS for name in section.styles]
        self.script = bundle((*SCRIPTS_BEFORE, *scripts, *SCRIPTS_AFTER))
        self.style = "".join(asset(name) for name in ("report.css", *styles))
        self.data, self.inline = inert_json(core), chunks.inline
        self.folder = chunks.folder.name if chunks.written else ""
        # The page's own script may load the chunk files; a single file loads nothing at all.
        self.policy = policy(self.script, self.style, script_extra=" 'strict-dynamic'" if self.folder else "")
