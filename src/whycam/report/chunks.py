"""Chunks of maps and images: inside the page, or in files beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whycam.files import write_bytes
from whycam.report.frontend import inert_json
from whycam.report.payload import Chunk


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


def remove_stale_chunks(folder: Path, keep: Iterable[Path]) -> None:
    """Delete the chunk files of earlier reports, and nothing else."""
    kept = set(keep)
    if folder.is_dir():
        for old in folder.glob("[0-9][0-9][0-9][0-9]-????????????.js"):
            if old not in kept:
                old.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
