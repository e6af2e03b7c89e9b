"""A study's display in a notebook: its report in a frame."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

HEIGHT = 760
LARGEST = 12_000_000
"""Bytes up to which a report is shown. A notebook file stores what it shows, so a larger report stays a file."""


def study_html(report: Path, metrics: Mapping[str, Any]) -> str:
    """The report in a frame of fixed height, isolated from the notebook; or a sentence that says why it is not shown.

    Args:
        report: the report's HTML file in the study folder.
        metrics: the study's.
    """
    title = f"{metrics['errors']:,} errors of {metrics['n']:,} images, accuracy {100 * metrics['accuracy']:.2f}%"
    reason = None
    if not report.is_file():
        reason = f"This study has no report yet: whycam report {report.parent} writes it."
    elif report.with_name(f"{report.stem}_files").is_dir():
        reason = f"The report has files beside it, which a notebook cannot show: open {report}."
    elif report.stat().st_size > LARGEST:
        reason = f"The report is too large to be kept in a notebook: open {report}."
    if reason is not None:
        return f"<p>{escape(title)}. {escape(reason)}</p>"
    page = escape(report.read_text(encoding="utf-8"), quote=True)
    # Without allow-same-origin the report's script cannot access the notebook.
    return (
        f'<iframe srcdoc="{page}" title="{escape(title, quote=True)}" sandbox="allow-scripts allow-downloads" '
        f'style="width:100%;height:{HEIGHT}px;border:1px solid #8888"></iframe>'
    )
