"""The report: one self-contained HTML file, or, beyond the size budget, the same page with chunks beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whycam.files import write_bytes, writing
from whycam.report.chunks import ChunkWriter, remove_stale_chunks
from whycam.report.frontend import asset, bundle, inert_json, policy, render
from whycam.report.payload import Payload
from whycam.report.sections import SECTIONS, Section, View
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
        write_bytes(path, render("template.html", page=_page(payload, core, chunks), live=False).encode())
    remove_stale_chunks(chunks.folder, chunks.written)
    return path


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


@dataclass(frozen=True)
class Page:
    """What the template reads.

    Attributes:
        manifest: the study's.
        metrics: the study's.
        sections: the sections that have something to show.
        views: section name → what its template reads.
        data: the data block as JSON.
        inline: the chunks in the page, as JSON.
        folder: name of the folder with the chunk files; "" if the page is one file.
        script: the page's script.
        style: the page's style sheet.
        policy: the content security policy.
    """

    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any]
    sections: tuple[Section, ...]
    views: dict[str, View]
    data: str
    inline: list[str]
    folder: str
    script: str
    style: str
    policy: str


def _page(payload: Payload, core: dict[str, Any], chunks: ChunkWriter) -> Page:
    views = {section.name: section.view(payload) for section in SECTIONS}
    scripts = [name for section in SECTIONS for name in section.scripts]
    script = bundle((*SCRIPTS_BEFORE, *scripts, *SCRIPTS_AFTER))
    style = "".join(asset(name) for name in ("report.css", *(name for section in SECTIONS for name in section.styles)))
    paged = bool(chunks.written)
    return Page(
        manifest=payload.manifest,
        metrics=payload.metrics,
        sections=tuple(section for section in SECTIONS if views[section.name] is not None),
        views={name: view for name, view in views.items() if view is not None},
        data=inert_json(core),
        inline=chunks.inline,
        folder=chunks.folder.name if paged else "",
        script=script,
        style=style,
        # The page's own script may load the chunk files; a single file loads nothing at all.
        policy=policy(script, style, script_extra=" 'strict-dynamic'" if paged else ""),
    )
