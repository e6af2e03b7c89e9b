"""Everything a study folder shows to a person: figures and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from whycam.report.figures import write_figures
from whycam.report.html import write_report
from whycam.study.folder import FIGURES, REPORT, Study


def publish(study: Study, *, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Draw a study's figures and write its report, into the study folder.

    Args:
        study: a finished one.
        progress: told (stage, done, total).

    Returns:
        The report.

    Raises:
        WhycamError: the folder cannot be written to, or the study is damaged.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    write_figures(study, study.path / FIGURES)
    tell("figures", 1, 1)
    page = write_report(study, study.path / REPORT)
    tell("report", 1, 1)
    return page
