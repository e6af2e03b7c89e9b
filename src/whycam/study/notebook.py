"""How a study shows itself in a notebook: its report in a frame."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from whycam.study.folder import REPORT

if TYPE_CHECKING:
    from whycam.study.folder import Study

HEIGHT = 760
LARGEST = 12_000_000
"""A notebook keeps what it shows: a larger report stays a file."""


def study_html(study: Study) -> str:
    """The report in a frame of fixed height, shut off from the notebook; or where it lies, and why it is not here."""
    path = study.path / REPORT
    metrics = study.metrics
    title = f"{metrics['errors']:,} errors of {metrics['n']:,} images, accuracy {100 * metrics['accuracy']:.2f}%"
    reason = None
    if not path.is_file():
        reason = f"This study has no report yet: whycam report {study.path} writes it."
    elif path.with_name(f"{path.stem}_files").is_dir():
        reason = f"The report has files beside it, which a notebook cannot show: open {path}."
    elif path.stat().st_size > LARGEST:
        reason = f"The report is too large to be kept in a notebook: open {path}."
    if reason is not None:
        return f"<p>{escape(title)}. {escape(reason)}</p>"
    page = escape(path.read_text(encoding="utf-8"), quote=True)
    # Without allow-same-origin the report's script cannot reach into the notebook.
    return (
        f'<iframe srcdoc="{page}" title="{escape(title, quote=True)}" sandbox="allow-scripts allow-downloads" '
        f'style="width:100%;height:{HEIGHT}px;border:1px solid #8888"></iframe>'
    )
