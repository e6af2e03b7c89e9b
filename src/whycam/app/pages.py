"""The pages that the server shows: the live page, and a study's report, read from its folder once."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whycam._version import __version__
from whycam.app.live_payload import live_core
from whycam.errors import WhycamError
from whycam.report.frontend import asset, bundle, inert_json, policy, render
from whycam.report.notes import READING
from whycam.study.folder import REPORT

if TYPE_CHECKING:
    from whycam.app.live_explainer import LiveExplainer
    from whycam.study.folder import Study

SCRIPTS = (
    "data.js", "relations.js", "color.js", "words.js", "state.js", "evidence.js", "theme.js", "export.js",
    "keyboard.js", "live.js",
)  # fmt: skip
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_TOOLS = '<div class="site-tools">'
_CHUNK = re.compile(r"\d{4}-[0-9a-f]{12}\.js")


@dataclass(frozen=True)
class Page:
    """A document and its Content-Security-Policy."""

    content: bytes
    policy: str


def live_page(live: LiveExplainer, *, report: str | None, max_bytes: int, frames: Sequence[str] = ()) -> Page:
    """The page that explains an image.

    Args:
        live: explains the images.
        report: the path of the study's report, or None.
        max_bytes: size of the largest file that the page may send.
        frames: origins that may show the page in a frame.
    """
    script, style = bundle(SCRIPTS), asset("report.css") + asset("live.css")
    rules = policy(script, style, "connect-src 'self'")
    core = live_core(live) | {"maxBytes": max_bytes}
    text = render(
        "live.html", live=True, policy=rules, script=script, style=style, data=inert_json(core), core=core,
        report=report, spec=live.spec, version=__version__, reading=READING,
    )  # fmt: skip
    return Page(text.encode(), f"{rules}; {_ancestors(frames)}")


def report_page(study: Study, *, live: str | None, frames: Sequence[str] = ()) -> Page:
    """A study's report.

    Args:
        study: the study.
        live: the path of the live page, which the report then links to, or None.
        frames: origins that may show the page in a frame.

    Raises:
        WhycamError: the study has no report.
    """
    path = study.path / REPORT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise WhycamError(f"{path} cannot be read: whycam report {study.path} writes it") from None
    found = _POLICY.search(text)
    if found is None:
        raise WhycamError(f"{path} is not a report of this whycam: whycam report {study.path} writes it again")
    if live is not None:
        text = text.replace(_TOOLS, f'{_TOOLS}<a class="try" href="{live}">Try an image</a>', 1)
    # The report's own policy covers its chunk files ('strict-dynamic'), whether it is a file or served.
    return Page(text.encode(), f"{html.unescape(found[1])}; {_ancestors(frames)}")


def report_chunks(study: Study) -> dict[str, bytes]:
    """The files beside a paged report, by name. They are read once, so that requests never reach the file system."""
    folder = study.path / f"{REPORT.removesuffix('.html')}_files"
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if _CHUNK.fullmatch(path.name)}


def _ancestors(frames: Sequence[str]) -> str:
    return f"frame-ancestors {' '.join(frames) or chr(39) + 'none' + chr(39)}"
